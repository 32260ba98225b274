from __future__ import annotations

import json
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest

from app import cli
from models.calibration import Calibration
from tests.photos import BUS


@pytest.mark.parametrize("representation", ["simcc", "dark", "pct"])
def test_predict_draws_and_tells(
    representation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["predict", str(BUS), "--representation", representation, "--out", str(tmp_path)]
    assert cli.main(asked) == 0
    told = capsys.readouterr().out
    assert f"people by {representation}-small" in told
    assert "person 0: score" in told
    drawn = cv2.imread(str(tmp_path / f"bus.{representation}.jpg"))
    photo = cv2.imread(str(BUS))
    assert drawn is not None
    assert photo is not None
    assert drawn.shape == photo.shape
    # The skeletons are there, and the rest of the picture is as it was.
    changed = np.abs(drawn.astype(int) - photo).max(-1) > 60
    assert 0.001 < changed.mean() < 0.2


def test_predict_as_json_is_a_coco_results_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(BUS), "--json", "--model", "dark-small"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["model"] == "dark-small"
    for result in body["predictions"]:
        assert set(result) == {"image_id", "category_id", "bbox", "score", "keypoints"}
        assert len(result["keypoints"]) == 51


@pytest.fixture
def misjudged(annotated: Path) -> Path:
    """The sample photo twice, with ankles annotated where nobody has them."""
    coco = json.loads(annotated.read_text())
    for person in coco["annotations"]:
        person["keypoints"][45:] = [400, 100, 2, 400, 100, 2]
        person["num_keypoints"] += 2
    coco["images"].append(coco["images"][0] | {"id": 8})
    coco["annotations"] += [person | {"image_id": 8} for person in coco["annotations"]]
    annotated.write_text(json.dumps(coco))
    return annotated


def test_calibrate_prints_what_belongs_into_the_card_and_draws(
    misjudged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["calibrate", "--annotations", str(misjudged), "--images", str(BUS.parent)]
    figure = tmp_path / "reliability.svg"
    assert cli.main([*asked, "--representation", "pct", "--figure", str(figure)]) == 0
    told = capsys.readouterr().out
    header, row = told.splitlines()[:2]
    assert header.split()[:2] == ["joints", "right"]
    name, joints, right, *figures = row.split()
    # Half of the four people, six joints each, of which the ankles are wrong.
    assert (name, joints) == ("pct-small", "12")
    assert 0.3 < float(right) <= 0.667
    assert len(figures) == 6
    card = tomllib.loads(told[told.index("[model.calibration]") :])["model"]
    found = Calibration.parse(card["calibration"])
    assert found.offsets[15] < found.offsets[5]
    assert figure.read_text().startswith("<?xml")


def test_models_list_says_whether_the_weights_are_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "list"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "name"
    assert len(rows) >= 3
    assert all("present" in row for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "nowhere.jpg"], "no such file: nowhere.jpg"),
        (["predict", str(Path(__file__))], "JPEG"),
        (["predict", str(BUS), "--model", "resnet-9000"], "unknown pose model 'resnet-9000'"),
        (["evaluate", "--annotations", "no.json", "--images", "."], "no.json"),
        (["evaluate", "--annotations", str(BUS), "--images", "."], "COCO"),
        (["calibrate", "--annotations", str(BUS), "--images", "."], "COCO"),
        (["train", "no-such-recipe", "--data", "."], "no recipe"),
        (["train", "dark-small", "--data", "/nowhere", "--runs", "{tmp}"], "is missing"),
        (
            ["train", "dark-small", "--data", ".", "--devices", "3", "--device", "cpu"],
            "shared by 3",
        ),
        (["train", "person-detector", "--data", ".", "--devices", "2"], "trains on one device"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("posemux: ")
    assert message in complaint


def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSE_PORT", "a lot")
    assert cli.main(["predict", str(BUS)]) == 2
    assert "POSE_PORT" in capsys.readouterr().err
