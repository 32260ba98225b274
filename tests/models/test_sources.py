"""Pose models by name and by weights file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models
from models import catalogue, sources
from models.conversion import convert
from models.downloads import sha256
from models.layouts import TOKENIZER, layout_of
from models.network import Architecture
from models.pose_model import PoseModel
from models.training.loop import card_of

from .training_support import PCT, RECIPE


def write(path: Path, architecture: Architecture, prefix: str = "") -> str:
    """A weights file as trainings leave it."""
    PoseModel.fresh(card_of("tiny", architecture)).save(path, prefix)
    return str(path)


def test_names_are_told_from_files() -> None:
    for path in ("mine.safetensors", "model_best.pth.tar", "runs/mine", "./mine"):
        assert sources.is_file(path)
        assert Path(sources.absolute(path)).is_absolute()
    for name in (*catalogue.names(), "nobody-knows-1.5"):
        assert not sources.is_file(name)
        assert sources.absolute(name) == name


def test_a_name_is_that_of_the_catalogue() -> None:
    assert sources.describe("dark-small") == models.card("dark-small")
    assert sources.path_of("dark-small") == catalogue.WEIGHTS / "dark-small.safetensors"
    with pytest.raises(models.UnknownModelError, match="nobody-knows"):
        sources.describe("nobody-knows")


def test_a_trainings_file_goes_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    source = write(path, RECIPE.architecture)
    card = sources.describe(source)
    assert card.architecture == RECIPE.architecture
    assert (card.name, card.scores, card.sha256) == ("mine", "raw", sha256(path))
    assert sources.path_of(source) == path
    assert sources.load(source).card == replace(card, sha256="")

    # A training that goes on writes the same file again.
    write(path, replace(RECIPE.architecture, input_size=(64, 96)))
    assert sources.describe(source).input_size == (64, 96)


def test_a_converted_file_is_described_as_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    convert("dark-small", path)
    here = {"name": "mine", "weights": "mine.safetensors", "sha256": sha256(path)}
    assert sources.describe(str(path)) == replace(models.card("dark-small"), **here)


def test_what_keys_leave_open_is_not_guessed(tmp_path: Path) -> None:
    architecture = models.card("mmpose-hrnet-w32-256x192").architecture
    path = tmp_path / "best.pth"
    # Stored as one number each.
    weights = {
        key.removeprefix("network."): torch.zeros((), dtype=like.dtype).expand(like.shape)
        for key, like in layout_of(architecture).items()
    }
    torch.save({"state_dict": weights}, path)
    with pytest.raises(
        models.WeightsError,
        match=r"^[^\n]*best\.pth may be mmpose-hrnet-w32-256x192 or mmpose-hrnet-w32-384x288 or "
        r"[^\n]*`posemux models convert [^\n]*best\.pth --layout NAME",
    ):
        sources.describe(str(path))


def test_a_published_layout_that_is_the_only_one_of_its_keys_is_known(tmp_path: Path) -> None:
    architecture = models.card("mmpose-simcc-mobilenetv2-256x192").architecture
    model = PoseModel.fresh(replace(card_of("tiny", architecture), authors="mmpose"))
    assert sources._alike(model.card, model.module().state_dict()) == [
        "mmpose-simcc-mobilenetv2-256x192"
    ]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("nowhere.pth", "No such file"),
        ("folder.pth", "Is a directory"),
        ("text.pth", "neither safetensors nor PyTorch's"),
        ("cut.safetensors", "cannot be read as safetensors"),
        ("tokenizer.safetensors", "PCT's tokenizer alone"),
    ],
)
def test_what_is_no_pose_model_is_one_clear_line(file: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "text.pth").write_text("hello")
    whole = Path(write(tmp_path / "tokenizer.safetensors", PCT, TOKENIZER)).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(models.WeightsError, match=rf"^[^\n]*{file}[^\n]*{told}[^\n]*$"):
        sources.describe(str(tmp_path / file))
