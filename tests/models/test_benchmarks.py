from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from models.benchmarks import CocoBenchmark, CrowdPoseBenchmark, MpiiBenchmark, read_benchmark
from models.coco import JOINT_NAMES
from models.evaluation import CROWDPOSE_JOINTS
from models.skeletons import MPII
from models.training.datasets import DatasetError

#: MPII's pixels count from 1. Two people in the first picture, one of them listed last.
PICTURES = ("a.jpg", "b.jpg", "a.jpg")


def points() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).uniform(50, 400, (len(PICTURES), MPII.joints, 2)).round(1)


@pytest.fixture
def mpii(tmp_path: Path) -> Path:
    """Three people as HRNet's authors publish them: `val.json` and `gt_val.mat`."""
    joints = points()
    visible = np.ones((len(PICTURES), MPII.joints), np.uint8)
    visible[1, :3] = 0
    people = [
        {
            **{"image": name, "center": [200, 210], "scale": 2.0},
            **{"joints": own.tolist(), "joints_vis": seen.tolist()},
        }
        for name, own, seen in zip(PICTURES, joints, visible, strict=True)
    ]
    (tmp_path / "val.json").write_text(json.dumps(people))
    heads = np.tile(np.array([[10.0, 10.0], [70.0, 90.0]])[..., None], (1, 1, len(PICTURES)))
    savemat(
        tmp_path / "gt_val.mat",
        {
            "pos_gt_src": joints.transpose(1, 2, 0),
            "jnt_missing": 1 - visible.T,
            "headboxes_src": heads,
        },
    )
    return tmp_path / "val.json"


def answer(picture: int, keypoints: np.ndarray[Any, Any]) -> dict[str, Any]:
    flat = np.column_stack((keypoints, np.ones(len(keypoints)))).flatten().tolist()
    return {"image_id": picture, "category_id": 1, "score": 1.0, "keypoints": flat}


def test_mpiis_people_are_asked_for_by_picture_and_measured_in_their_order(mpii: Path) -> None:
    benchmark = read_benchmark(mpii)
    assert isinstance(benchmark, MpiiBenchmark)
    assert [entry["file_name"] for entry in benchmark.pictures] == ["a.jpg", "b.jpg"]
    first, second = (entry["id"] for entry in benchmark.pictures)
    assert [len(benchmark.boxes[first]), len(benchmark.boxes[second])] == [2, 1]
    # 200 pixels a unit of scale around a centre that is moved down by 15 a unit.
    np.testing.assert_allclose(benchmark.boxes[second], [[-1, 39, 399, 439]])
    found = points() - 1
    results = [answer(first, found[0]), answer(first, found[2]), answer(second, found[1])]
    figures, joints = benchmark.measure(results)
    assert set(figures.values()) == {1.0}
    assert list(figures)[-3:] == ["Mean", "Mean@0.1", "Mean@0.11"]
    assert joints == {}

    # Off by 6.3 pixels: 0.105 of the head's 60.
    moved = [answer(first, found[0] + (6.3, 0)), *results[1:]]
    figures, _ = benchmark.measure(moved)
    assert (figures["Mean"], figures["Mean@0.11"]) == (1, 1)
    assert figures["Mean@0.1"] == pytest.approx(1 - 14 / (3 * 14 - 3))

    # The third person is not found at all.
    figures, _ = benchmark.measure([results[0], results[2]])
    assert figures["Mean"] == pytest.approx(1 - 14 / (3 * 14 - 3))


def test_mpii_needs_the_size_of_heads(mpii: Path) -> None:
    heads = mpii.with_name("gt_val.mat")
    whole = heads.read_bytes()
    people = json.loads(mpii.read_text())
    mpii.write_text(json.dumps(people[:2]))
    with pytest.raises(DatasetError, match="2 people with labelled joints, its gt_val"):
        read_benchmark(mpii)
    savemat(heads, {"pos_gt_src": 1})
    with pytest.raises(DatasetError, match="not MPII's ground truth"):
        read_benchmark(mpii)
    nonsense = b"long enough for a header, and still nothing that Matlab wrote. " * 4
    for damaged in (nonsense, whole[: len(whole) // 2], b""):
        heads.write_bytes(damaged)
        with pytest.raises(DatasetError, match="not MPII's ground truth"):
            read_benchmark(mpii)
    heads.unlink()
    with pytest.raises(DatasetError, match="is missing: MPII's figures need its head boxes"):
        read_benchmark(mpii)


def test_a_model_of_other_joints_cannot_be_compared(mpii: Path) -> None:
    with pytest.raises(DatasetError, match="MPII's 16 joints, and this one has 17, from nose"):
        read_benchmark(mpii).title(JOINT_NAMES)
    nobody: dict[str, Any] = {"images": [], "annotations": []}
    with pytest.raises(DatasetError, match="COCO's 17 joints, and this one has 16"):
        CocoBenchmark(nobody).title(MPII.names)
    crowdpose = CrowdPoseBenchmark(nobody)
    with pytest.raises(DatasetError, match="its 14 joints or of COCO's 17, and this one has 16"):
        crowdpose.title(MPII.names)
    assert crowdpose.title(CROWDPOSE_JOINTS) == "CrowdPose"
    assert "12 of its 14" in crowdpose.title(JOINT_NAMES)
