from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from app.formats import WRITERS
from app.journal import Entry
from models.skeletons import COCO as SKELETON


def person(left: float, top: float, score: float, joint_score: float = 0.8) -> dict[str, object]:
    """Somebody 100 pixels wide and 200 high whose joints lie on the diagonal."""
    along = np.linspace(0, 1, 17)
    scores = np.full(17, joint_score)
    scores[3] = 0.29
    joints = np.stack((left + 100 * along, top + 200 * along, scores), 1)
    box = [left, top, 100.0, 200.0]
    return {"bbox": box, "score": score, "keypoints": joints.round(2).ravel().tolist()}


ENTRIES = [
    Entry('größe, "a".jpg', (1, 1), 400, 300, [person(20, 30, 0.9), person(-10, 150, 0.5)]),
    Entry("nobody.png", (1, 1), 64, 48),
    Entry("sub/nobody.jpg", (1, 1), 1000, 500, [person(0, 0, 0.7)]),
]


def entries() -> Iterator[Entry]:
    return iter(ENTRIES)


def test_coco_reads_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = WRITERS["coco"](entries, tmp_path, SKELETON)
    assert written.paths == [tmp_path / "results.json", tmp_path / "annotations.json"]
    assert sorted(tmp_path.iterdir()) == sorted(written.paths)
    truth = COCO(str(tmp_path / "annotations.json"))
    found = truth.loadRes(str(tmp_path / "results.json"))
    assert [image["file_name"] for image in truth.dataset["images"]] == [
        entry.name for entry in ENTRIES
    ]
    [image] = truth.loadImgs(1)
    assert (image["width"], image["height"]) == (400, 300)
    [category] = truth.loadCats(1)
    assert category["keypoints"] == list(SKELETON.names)
    assert category["skeleton"][0] == [16, 14]
    for coco in (truth, found):
        owners = [(item["id"], item["image_id"]) for item in coco.loadAnns(coco.getAnnIds())]
        assert owners == [(1, 1), (2, 1), (3, 3)]
    first = ENTRIES[0].people[0]
    assert found.loadAnns(1)[0]["keypoints"] == first["keypoints"]
    [annotated] = truth.loadAnns(1)
    joints = np.array(annotated["keypoints"]).reshape(17, 3)
    seen = np.arange(17) != 3
    assert (joints[:, 2] == 2 * seen).all()
    assert (joints[3] == 0).all()
    expected = np.array(first["keypoints"]).reshape(17, 3)[seen, :2]
    np.testing.assert_array_equal(joints[seen, :2], expected)
    assert annotated["num_keypoints"] == 16
    assert annotated["area"] == 20000


def test_coco_of_nobody_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    WRITERS["coco"](lambda: iter(ENTRIES[1:2]), tmp_path, SKELETON)
    assert json.loads((tmp_path / "results.json").read_text()) == []
    assert COCO(str(tmp_path / "annotations.json")).getImgIds() == [1]


def test_yolo_labels_are_what_ultralytics_trains_on(tmp_path: Path) -> None:
    written = WRITERS["yolo"](entries, tmp_path, SKELETON)
    assert written.left_out == {}
    rows = np.loadtxt(tmp_path / "labels" / 'größe, "a".txt', ndmin=2)
    assert rows.shape == (2, 5 + 17 * 3)
    assert (rows[:, 0] == 0).all()
    assert (rows[:, 1:5] >= 0).all()
    assert (rows[:, 1:5] <= 1).all()
    np.testing.assert_allclose(rows[0, 1:5], [70 / 400, 130 / 300, 100 / 400, 200 / 300], rtol=1e-5)
    # The second reaches out of the picture on two sides.
    np.testing.assert_allclose(rows[1, 1:5], [45 / 400, 225 / 300, 90 / 400, 0.5], rtol=1e-5)
    joints = rows[:, 5:].reshape(2, 17, 3)
    for row, found in zip(joints, ENTRIES[0].people, strict=True):
        expected = np.array(found["keypoints"]).reshape(17, 3)
        inside = (expected[:, :2] >= 0).all(1) & (expected[:, :2] <= (400, 300)).all(1)
        seen = inside & (np.arange(17) != 3)
        assert (row[:, 2] == 2 * seen).all()
        np.testing.assert_allclose(row[seen, :2] * (400, 300), expected[seen, :2], atol=2e-3)
        assert (row[~seen] == 0).all()
    assert 0 < seen.sum() < 16
    assert (tmp_path / "labels" / "nobody.txt").read_text() == ""
    assert len((tmp_path / "labels" / "sub" / "nobody.txt").read_text().splitlines()) == 1
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert data["kpt_shape"] == [17, 3]
    assert data["flip_idx"][:3] == [0, 2, 1]
    assert data["names"] == {0: "person"}
    assert data["kpt_names"] == {0: list(SKELETON.names)}


def test_yolo_has_one_place_for_pictures_that_differ_in_their_ends(tmp_path: Path) -> None:
    same = [Entry("a.jpg", (1, 1), 9, 9), Entry("a.x.png", (1, 1), 9, 9), Entry("a.png", (1, 1))]
    written = WRITERS["yolo"](lambda: iter(same), tmp_path, SKELETON)
    assert written.left_out.keys() == {"a.png"}
    assert "labels/a.txt" in written.left_out["a.png"]


def test_csv_has_a_row_for_each_person(tmp_path: Path) -> None:
    WRITERS["csv"](entries, tmp_path, SKELETON)
    with (tmp_path / "poses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["person"]) for row in rows] == [
        ('größe, "a".jpg', "0"),
        ('größe, "a".jpg', "1"),
        ("sub/nobody.jpg", "0"),
    ]
    last, expected = rows[2], ENTRIES[2].people[0]
    assert (last["image_width"], last["image_height"]) == ("1000", "500")
    assert float(last["score"]) == expected["score"]
    assert float(last["box_height"]) == 200
    assert [float(last[f"right_ankle_{part}"]) for part in ("x", "y", "score")] == [100, 200, 0.8]


@pytest.mark.parametrize("format", WRITERS)
def test_names_that_are_no_text_stay_what_they_are(tmp_path: Path, format: str) -> None:
    odd = Entry("\udcff.jpg", (1, 1), 400, 300, [person(0, 0, 0.5)])
    WRITERS[format](lambda: iter([odd]), tmp_path, SKELETON)
    if format == "csv":
        assert b"\n\xff.jpg,400" in (tmp_path / "poses.csv").read_bytes()
    elif format == "yolo":
        assert (tmp_path / "labels" / "\udcff.txt").is_file()
    else:
        images = json.loads((tmp_path / "annotations.json").read_text())["images"]
        assert images[0]["file_name"] == odd.name
