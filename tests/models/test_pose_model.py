from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from models import catalogue
from models.geometry import crop_affines
from models.network import Architecture, ArchitectureError
from models.pose_model import MEAN, STD, PoseModel
from models.training.loop import card_of
from tests.photos import BUS

BUNDLED = catalogue.bundled()


def test_there_is_a_bundled_model_for_each_representation() -> None:
    found = [models.card(models.default(name)).representation for name in models.REPRESENTATIONS]
    assert found == list(models.REPRESENTATIONS)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_load_and_decode(name: str) -> None:
    model = models.load(name)
    width, height = model.input_size
    with torch.inference_mode():
        keypoints = model.decode(model.network(torch.randn(3, 3, height, width)))
    assert keypoints.shape == (3, 17, 3)
    assert torch.isfinite(keypoints).all()
    assert ((keypoints[..., 2] >= 0) & (keypoints[..., 2] <= 1)).all()


def bus_crops(size: tuple[int, int]) -> torch.Tensor:
    """Somebody who stands in plain view, and noise, as crops `(2, 3, H, W)`."""
    picture = cv2.imread(str(BUS), cv2.IMREAD_COLOR_RGB)
    box = torch.tensor([[52.0, 396.0, 246.0, 902.0]])
    affine = crop_affines(box, size)[0].numpy()
    person = torch.from_numpy(cv2.warpAffine(picture, affine, size)).permute(2, 0, 1) / 255  # type: ignore[arg-type]
    noise = torch.rand(person.shape, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (torch.stack((person, noise)) - mean) / std


@pytest.mark.parametrize("representation", models.REPRESENTATIONS)
def test_bundled_scores_are_probabilities_of_each_joint(representation: str) -> None:
    model = models.load(models.default(representation))
    with torch.inference_mode():
        raw = model.network(bus_crops(model.input_size))
        calibrated, own = model.decode(raw), model.uncalibrated().decode(raw)
    assert ((calibrated[..., 2] >= 0) & (calibrated[..., 2] <= 1)).all()
    assert ((own[..., 2] >= 0) & (own[..., 2] <= 1)).all()
    torch.testing.assert_close(calibrated[..., :2], own[..., :2])
    for person in range(2):
        # Every joint is scored by itself, and not by an offset of the calibration alone; a few
        # may be cut to 1.
        assert own[person, :, 2].unique().numel() > 10
        assert (own[person, :, 2] / own[person, :, 2].mean() - 1).abs().max() > 0.02
    assert calibrated[0, :, 2].mean() > 0.6
    assert calibrated[0, :, 2].mean() > 2 * calibrated[1, :, 2].mean()


def test_other_weights_lose_the_cards_calibration_and_the_same_keep_it(tmp_path: Path) -> None:
    card = models.card("dark-small")
    own = Path(models.__file__).parent / "weights" / card.weights
    assert models.load("dark-small", weights=own).card == card
    other = tmp_path / "other.safetensors"
    PoseModel.fresh(card).save(other)
    assert models.load("dark-small", weights=other).card.scores == "raw"
    assert models.load(weights=other).card.scores == "raw"


def test_raw_scores_are_cut_to_one() -> None:
    model = models.load("dark-small").uncalibrated()
    maps = torch.zeros(1, 17, 64, 48)
    maps[0, :, 30, 20] = torch.linspace(-0.5, 1.5, 17)
    assert model.card.scores == "raw"
    expected = maps[0, :, 30, 20].clamp_min(0)
    torch.testing.assert_close(model.decode(maps)[0, :, 2], expected.clamp_max(1))


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_weights_are_small_and_described(name: str) -> None:
    card = models.card(name)
    path = Path(models.__file__).parent / "weights" / card.weights
    assert path.stat().st_size <= 12e6
    assert card.training_data
    assert card.licence
    assert set(card.measured) >= {"AP", "AP50"}
    assert "coco-dev" in card.note


def test_the_bundled_detector_is_the_one_that_its_card_describes() -> None:
    folder = Path(models.__file__).parent
    card = tomllib.loads((folder / "catalogue.toml").read_text())["detector"]
    weights = folder / "weights" / card["weights"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == card["sha256"]
    assert "coco-dev" in card["note"]


@pytest.mark.parametrize("name", BUNDLED)
def test_a_layout_is_known_by_its_keys_alone(name: str, tmp_path: Path) -> None:
    card = models.card(name)
    tensors = load_file(Path(models.__file__).parent / "weights" / card.weights)
    save_file(tensors, tmp_path / "somebody.safetensors")
    model = models.load(weights=tmp_path / "somebody.safetensors")
    assert model.card.architecture == card.architecture
    assert model.card.name == "somebody"
    assert model.card.measured == {}


@pytest.mark.parametrize("name", BUNDLED)
def test_saving_and_loading_keeps_every_answer(name: str, tmp_path: Path) -> None:
    model = models.load(name)
    model.save(tmp_path / "again.safetensors")
    again = models.load(weights=tmp_path / "again.safetensors")
    crops = torch.randn(2, 3, model.input_size[1], model.input_size[0])
    with torch.inference_mode():
        # The calibration is the card's, not the file's.
        expected = model.uncalibrated().decode(model.network(crops))
        torch.testing.assert_close(again.decode(again.network(crops)), expected)


def test_an_unknown_name_is_an_error_that_names_the_known() -> None:
    with pytest.raises(models.UnknownModelError, match="simcc-small"):
        models.load("resnet-9000")


def test_neither_name_nor_weights() -> None:
    with pytest.raises(models.WeightsError, match="give a name"):
        models.load()


@pytest.mark.parametrize("damage", ["missing", "garbage", "truncated"])
def test_damaged_weights_are_one_clear_error(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    whole = (
        Path(models.__file__).parent / "weights" / models.card("dark-small").weights
    ).read_bytes()
    if damage == "garbage":
        path.write_bytes(b"\x00" * 100)
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(models.WeightsError, match="cannot be read"):
        models.load("dark-small", weights=path)


def test_weights_of_another_layout_name_the_first_difference() -> None:
    folder = Path(models.__file__).parent / "weights"
    other = folder / models.card("dark-small").weights
    with pytest.raises(models.WeightsError, match=r"does not fit simcc-small: \d+ keys, network"):
        models.load("simcc-small", weights=other)


def test_weights_of_no_known_layout_name_the_nearest(tmp_path: Path) -> None:
    tensors = load_file(Path(models.__file__).parent / "weights" / models.card("pct-small").weights)
    tensors["network.head.cls_pred_layer.bias"] = torch.zeros(7)
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(models.WeightsError, match=r"nearest is pct-small.*cls_pred_layer\.bias"):
        models.load(weights=tmp_path / "odd.safetensors")


def test_changed_weights_are_not_taken_for_the_bundled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = models.load("dark-small")
    model.network.head.final_layer.bias.data += 1  # type: ignore[operator,union-attr]
    model.save(tmp_path / model.card.weights)
    monkeypatch.setattr("models.catalogue.WEIGHTS", tmp_path)
    with pytest.raises(models.WeightsError, match="damaged"):
        models.load("dark-small")


ARCHITECTURE = Architecture("dark", "regnetx_002", (64, 64), 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"representation": "openpose"}, "representation must be one of"),
        ({"backbone": "no_such_net"}, "backbone"),
        ({"options": {"sigmaa": 2}}, "sigmaa"),
        ({"options": {"stride": 5}}, "features of stride"),
    ],
)
def test_impossible_architectures_say_why(change: dict[str, object], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        PoseModel.fresh(card_of("odd", replace(ARCHITECTURE, **change)))  # type: ignore[arg-type]


def test_flip_merge_is_exact_on_a_mirrored_pose() -> None:
    model = models.load("dark-small")
    keypoints = torch.rand(2, 17, 3) * 100
    mirrored = keypoints[:, list(models.coco.MIRRORED)].clone()
    mirrored[..., 0] = model.input_size[0] - 1 - mirrored[..., 0]
    torch.testing.assert_close(model.flip_merge(keypoints, mirrored), keypoints)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", BUNDLED)
def test_half_precision_on_the_gpu_moves_no_joint_far(name: str) -> None:
    full, half = models.load(name), models.load(name, device="cuda", dtype=torch.float16)
    crops = torch.randn(4, 3, full.input_size[1], full.input_size[0])
    with torch.inference_mode():
        expected = full.decode(full.network(crops))
        found = half.decode(half.network(crops.cuda().half())).cpu()
    assert (found[..., :2] - expected[..., :2]).norm(dim=-1).median() < 0.5
