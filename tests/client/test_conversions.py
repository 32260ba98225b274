"""Each conversion has what was answered, where its tool looks for it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from posemux_client import Model, Poses
from posemux_client.conversions import (
    label_studio_config,
    to_coco,
    to_label_studio,
    to_mmpose,
    to_supervision,
)
from pycocotools.coco import COCO

from models.coco import FLIP_PAIRS, JOINT_NAMES, SKELETON

MODEL = Model(
    *("simcc-small", "simcc", True, JOINT_NAMES, SKELETON, FLIP_PAIRS),
    *((192, 256), "calibrated", "AGPL-3.0-or-later", 12.5, {}),
)


def poses(people: int, width: int = 400, height: int = 200) -> Poses:
    """Somebody 100 pixels wide every 150, joints on the diagonal, the fourth one unlikely."""
    left = np.arange(people)[:, None] * 150.0
    along = np.linspace(0, 1, 17)
    scores = np.where(np.arange(17) == 3, 0.2, 0.9) * np.ones((people, 1))
    joints = np.stack((left + 100 * along, 180 * along * np.ones_like(left), scores), -1)
    boxes = np.concatenate((left, 0 * left, left + 100, 0 * left + 180), 1)
    ranks = 0.9 - 0.1 * np.arange(people)
    arrays = (boxes.astype(np.float32), ranks.astype(np.float32), joints.astype(np.float32))
    return Poses(width, height, *arrays, MODEL, "id", {})


TWO, NOBODY = poses(2), poses(0)


def test_mmpose_has_arrays_by_its_names() -> None:
    found = to_mmpose(TWO)
    shapes = {name: array.shape for name, array in found.items()}
    assert shapes == {
        **{"keypoints": (2, 17, 2), "keypoint_scores": (2, 17)},
        **{"bboxes": (2, 4), "bbox_scores": (2,)},
    }
    np.testing.assert_array_equal(found["keypoints"][1, -1], [250, 180])
    assert to_mmpose(NOBODY)["keypoints"].shape == (0, 17, 2)


def test_supervision_draws_it() -> None:
    supervision = pytest.importorskip("supervision", minversion="0.29")
    found = to_supervision(TWO)
    assert len(found) == 2
    assert not found.visible[:, 3].any()
    assert found.visible.sum() == 32
    edges = [(first + 1, second + 1) for first, second in SKELETON]
    drawn = supervision.EdgeAnnotator(edges=edges).annotate(
        np.zeros((200, 400, 3), np.uint8), found
    )
    assert drawn[:, :110].any()
    assert drawn[:, 150:260].any()
    assert not drawn[:, 280:].any()
    assert len(to_supervision(NOBODY)) == 0


def test_coco_is_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(to_coco({"a.jpg": TWO, "b.jpg": NOBODY, "c.jpg": poses(1)})))
    coco = COCO(str(path))
    assert [image["file_name"] for image in coco.loadImgs([1, 2, 3])] == ["a.jpg", "b.jpg", "c.jpg"]
    owners = [(person["id"], person["image_id"]) for person in coco.loadAnns(coco.getAnnIds())]
    assert owners == [(1, 1), (2, 1), (3, 3)]
    second = coco.loadAnns(2)[0]
    assert second["bbox"] == [150, 0, 100, 180]
    assert second["area"] == 18000
    assert second["num_keypoints"] == 16
    assert second["keypoints"][9:12] == [0, 0, 0]
    assert second["keypoints"][-3:] == [250, 180, 2]
    [category] = coco.loadCats(1)
    assert category["keypoints"] == list(JOINT_NAMES)
    assert category["skeleton"][0] == [16, 14]
    with pytest.raises(ValueError, match="one kind of skeleton; got 0"):
        to_coco({})


def test_label_studio_has_points_that_belong_to_boxes() -> None:
    task = json.loads(json.dumps(to_label_studio(TWO, "https://example.org/a.jpg")))
    assert task["data"] == {"image": "https://example.org/a.jpg"}
    [prediction] = task["predictions"]
    assert prediction["score"] == pytest.approx(0.85)
    regions = {region["id"]: region for region in prediction["result"]}
    assert len(regions) == len(prediction["result"]) == 2 * (1 + 16)
    box = regions["person-1"]["value"]
    assert box == {
        **{"x": 37.5, "y": 0, "width": 25, "height": 90, "rotation": 0},
        "rectanglelabels": ["person"],
    }
    ankle = regions["person-1-right_ankle"]
    assert (ankle["value"]["x"], ankle["value"]["y"]) == (62.5, 90)
    assert ankle["parentID"] == "person-1"

    config = ElementTree.fromstring(label_studio_config(MODEL))
    for region in regions.values():
        control = config.find(f".//*[@name='{region['from_name']}']")
        assert control is not None
        assert control.tag.lower() == region["type"]
        assert control.get("toName") == region["to_name"]
        labels = {label.get("value") for label in control}
        assert set(region["value"][region["type"]]) <= labels
    assert "score" not in to_label_studio(NOBODY, "x")["predictions"][0]


def test_label_studio_gets_nothing_outside_of_the_image() -> None:
    [prediction] = to_label_studio(poses(2, 200, 100), "x")["predictions"]
    for region in prediction["result"]:
        value = region["value"]
        assert 0 <= value["x"] <= value["x"] + value["width"] <= 100.5
        assert 0 <= value["y"] <= value["y"] + value.get("height", 0) <= 100
