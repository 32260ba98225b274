"""Weights files: every container is read, and nothing in a file is executed."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.checkpoints import WeightsError, read_checkpoint, rename
from models.network import Architecture
from models.pose_model import PoseModel
from models.training.loop import card_of

WEIGHTS = OrderedDict(
    {"conv1.weight": torch.arange(12.0).view(3, 4), "bn1.num_batches_tracked": torch.tensor(7)}
)
OTHER = {key: value + 1 for key, value in WEIGHTS.items()}
#: What mmpose writes beside its weights.
META = {
    "mmpose_version": "1.3.2",
    "dataset_meta": {
        "dataset_name": "coco",
        "keypoint_colors": np.array([[51, 153, 255]], np.uint8),
        "sigmas": np.array([0.026, 0.025], np.float32),
        "skeleton_links": [(15, 13)],
        "names": np.array(["nose", "left_eye"]),
    },
    "AP": np.float64(0.749),
}

CONTAINERS: dict[str, Any] = {
    "bare": WEIGHTS,
    "state_dict": {"state_dict": WEIGHTS},
    "model": {"model": WEIGHTS, "epoch": 3},
    "mmpose": {"meta": META, "state_dict": WEIGHTS},
    "training": {
        "epoch": 210,
        "model": "pose_hrnet",
        "state_dict": {f"module.{key}": value for key, value in OTHER.items()},
        "best_state_dict": WEIGHTS,
        "perf": np.float64(0.7),
        "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.001, "params": [0]}]},
    },
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_every_container_gives_the_same_weights(
    container: str, zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "file.pth"
    torch.save(CONTAINERS[container], path, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path)
    assert found.keys() == WEIGHTS.keys()
    for key, value in WEIGHTS.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


def test_arrays_go_by_the_names_of_both_numpys(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save(CONTAINERS["mmpose"], path, _use_new_zipfile_serialization=False)
    written = path.read_bytes()
    names = (b"numpy.core.multiarray", b"numpy._core.multiarray")
    for name in names:
        for other in names:
            written = written.replace(other, name)
        assert name in written
        path.write_bytes(written)
        assert read_checkpoint(path).keys() == WEIGHTS.keys()


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    save_file({"conv1.weight": WEIGHTS["conv1.weight"]}, path)
    assert read_checkpoint(path).keys() == {"conv1.weight"}


class Poison:
    """Makes a folder when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("wrapped", ["zip", "pickle", "plain pickle"])
def test_nothing_in_a_file_is_executed(wrapped: str, tmp_path: Path) -> None:
    path, victim = tmp_path / "file.pth", tmp_path / "victim"
    poisoned = {"meta": Poison(victim), "state_dict": WEIGHTS}
    if wrapped == "plain pickle":
        path.write_bytes(pickle.dumps(poisoned, protocol=2))
        pickle.loads(path.read_bytes())
        assert victim.is_dir(), "the poison works"
        victim.rmdir()
    else:
        torch.save(poisoned, path, _use_new_zipfile_serialization=wrapped == "zip")
    with pytest.raises(WeightsError, match=r"^[^\n]*file\.pth [^\n]*it calls \w+\.mkdir,[^\n]*$"):
        read_checkpoint(path)
    assert not victim.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_one_clear_error(share: float, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=zipped)
    written = path.read_bytes()
    path.write_bytes(written[: int(len(written) * share)])
    with pytest.raises(WeightsError, match=r"^[^\n]*file\.pth cannot be read[^\n]*damaged[^\n]*$"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "neither safetensors nor PyTorch's"),
        (b"PK\x03\x04 and no more of an archive", "damaged"),
    ],
)
def test_what_is_no_checkpoint_is_one_clear_error(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"^[^\n]*file\.pth cannot be read[^\n]*{message}"):
        read_checkpoint(path)


def test_a_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot be read: Is a directory$"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("holds", "message"),
    [
        ([1, 2], "holds no weights but a list"),
        ({}, "holds no weights but a dict"),
        ({"state_dict": {}}, "holds no weights but a dict"),
        ({"epoch": 3, "weights": {"a": torch.zeros(1)}}, "'epoch' is no tensor"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, "'a' is no tensor of real numbers"),
        ({"a": torch.zeros(1, device="meta")}, "'a' is no tensor of real numbers"),
    ],
)
def test_what_holds_no_weights_is_one_clear_error(holds: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save(holds, path)
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(path)


def test_only_what_inference_never_reads_is_left_out() -> None:
    one = torch.zeros(1)
    published = {
        "backbone.conv1.weight": one,
        "extra_backbone.conv1.weight": one,
        "module.extra_backbone.conv1.weight": one,
        "data_preprocessor.mean": one,
        "backbone.layers.0.blocks.0.attn.relative_position_index": one,
        "backbone.layers.0.blocks.0.attn.relative_coords_table": one,
        "ema_backbone.conv1.weight": one,
    }
    assert rename(published).keys() == {
        "network.backbone.conv1.weight",
        "network.backbone.ema_backbone.conv1.weight",
    }


def test_keys_that_become_the_same_are_an_error() -> None:
    with pytest.raises(WeightsError, match=r"module\.conv1\.weight, become network\.backbone"):
        rename({"conv1.weight": torch.zeros(1), "module.conv1.weight": torch.ones(1)})


def test_batch_counters_alone_may_be_missing_or_too_many(tmp_path: Path) -> None:
    architecture = Architecture("dark", "regnetx_002", (64, 64), 16)
    whole = PoseModel.fresh(card_of("tiny", architecture)).module().state_dict()
    counter = "num_batches_tracked"
    without = {key: value for key, value in whole.items() if not key.endswith(counter)}
    assert len(without) < len(whole)
    path = tmp_path / "file.pth"
    for state in (without, {**whole, f"network.head.{counter}": torch.tensor(3)}):
        torch.save(state, path)
        model = PoseModel.fresh(card_of("tiny", architecture)).load_weights(path)
        for key, value in model.module().state_dict().items():
            assert key.endswith(counter) or torch.equal(value, whole[key])
    first = next(iter(without))
    torch.save({key: value for key, value in whole.items() if key != first}, path)
    with pytest.raises(WeightsError, match=rf"1 keys, {first}: nothing in the file"):
        PoseModel.fresh(card_of("tiny", architecture)).load_weights(path)
