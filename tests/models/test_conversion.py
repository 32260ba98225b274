"""Weights become our safetensors without losing anything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import models
from models import catalogue
from models.conversion import convert
from models.network import Architecture
from models.pose_model import PoseModel
from models.skeletons import MPII
from models.training.loop import card_of

ARCHITECTURE = Architecture("dark", "regnetx_002", (64, 64), 16)


def answers(model: PoseModel) -> torch.Tensor:
    width, height = model.input_size
    crops = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.decode(model.network(crops))


@pytest.mark.parametrize("name", ["simcc-small", "pct-small"])
def test_a_listed_model_keeps_its_answers_and_its_card(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    convert(name, path)
    original, again = models.load(name), models.load(weights=path)
    assert torch.equal(answers(again), answers(original))
    assert again.card.scores == "calibrated"
    assert again.card == replace(original.card, name="mine", weights="mine.safetensors", sha256="")
    assert list(tmp_path.iterdir()) == [path]


def test_a_published_file_keeps_its_precision(tmp_path: Path) -> None:
    made = PoseModel.fresh(models.card("dark-small")).module().state_dict()
    state = {f"module.{key}": value.contiguous() for key, value in made.items()}
    head = "module.network.head.final_layer.weight"
    state[head] = state[head].double()
    source, path = tmp_path / "file.pth", tmp_path / "file.safetensors"
    # Two tensors in one storage, as slices of a checkpoint may be.
    both = torch.stack((state["module.network.head.final_layer.bias"],) * 2)
    state["module.network.head.final_layer.bias"] = both[1]
    torch.save({"meta": {"epoch": np.float64(3)}, "state_dict": state}, source)
    card = convert(str(source), path)
    assert card.architecture == models.card("dark-small").architecture
    written = load_file(path)
    assert written.keys() == made.keys()
    for key, value in written.items():
        assert value.dtype == state[f"module.{key}"].dtype
        assert torch.equal(value, state[f"module.{key}"])
    assert torch.equal(answers(models.load(weights=path)), answers(models.load(weights=source)))


def test_joints_and_layout_travel_along(tmp_path: Path) -> None:
    architecture = replace(ARCHITECTURE, joints=MPII.names)
    PoseModel.fresh(card_of("tiny", architecture)).save(tmp_path / "tiny.safetensors")
    path = tmp_path / "again.safetensors"
    convert(str(tmp_path / "tiny.safetensors"), path)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["card"])["architecture"]["joints"] == list(MPII.names)
    # Converted again, it still says so.
    convert(str(path), tmp_path / "third.safetensors")
    assert models.load(weights=tmp_path / "third.safetensors").skeleton == MPII


def test_how_crops_are_made_travels_along(tmp_path: Path) -> None:
    architecture = Architecture("dark", "resnet18", (64, 64), 16)
    model = PoseModel.fresh(replace(card_of("tiny", architecture), authors="official"))
    source, path = tmp_path / "tiny.safetensors", tmp_path / "again.safetensors"
    said = {"card": json.dumps(model.card.table())}
    save_file(model.module().state_dict(), source, said)
    convert(str(source), path)
    again = models.load(weights=path)
    assert again.bgr
    assert again.card.profile == model.card.profile


def test_a_failed_conversion_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"before")

    def full_disk(_: object, draft: Path, __: object) -> None:
        draft.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("models.conversion.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        convert("dark-small", path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_detectors_weights_are_no_pose_models(tmp_path: Path) -> None:
    detector = catalogue.WEIGHTS / "person-detector.safetensors"
    with pytest.raises(models.WeightsError, match=r"^[^\n]*detector\.safetensors is no pose model"):
        convert(str(detector), tmp_path / "x.safetensors")


@pytest.mark.parametrize("said", [{"name": "x"}, {"architecture": 3}, [1], "text"])
def test_a_card_that_makes_no_sense_is_one_clear_error(said: object, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"network.a": torch.zeros(1)}, path, {"card": json.dumps(said)})
    with pytest.raises(models.WeightsError, match=r"^[^\n]*odd\.safetensors says of itself"):
        models.load(weights=path)
