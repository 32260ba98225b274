"""`posemux evaluate`, through the command line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

import models
from app import cli, images
from app.main import build_detector
from app.settings import Settings
from models.catalogue import WEIGHTS, complexity_of
from models.coco import JOINT_NAMES
from models.evaluation import (
    BOX_FIGURES,
    CROWDPOSE_FIGURES,
    CROWDPOSE_JOINTS,
    KEYPOINT_FIGURES,
    PCKH_PARTS,
)
from models.network import Architecture
from models.pose_model import Card, PoseModel
from models.skeletons import MPII
from tests.app.api_support import Running
from tests.photos import BUS

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(annotated: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Evaluates on the sample photo and returns the report."""

    def run(*arguments: str, annotations: Path = annotated) -> dict[str, Any]:
        asked = ["evaluate", "--annotations", str(annotations), "--images", str(BUS.parent)]
        assert cli.main([*asked, *arguments, "--json"]) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return run


def changed(path: Path, change: Callable[[dict[str, Any]], None], name: str) -> Path:
    """The annotations with something changed, in a file of their own."""
    coco = json.loads(path.read_text())
    change(coco)
    written = path.with_name(name)
    written.write_text(json.dumps(coco))
    return written


def write_detections(path: Path, image_id: int = 7, scale: float = 1.0) -> Path:
    """What the bundled detector finds on the sample photo, as a COCO detection results file."""
    photo = images.decode(BUS.read_bytes(), 10**8)
    [people] = build_detector(Settings())([photo], 0.02)
    rows = [
        {
            **{"image_id": image_id, "category_id": 1, "score": scale * float(score)},
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
        }
        for (x1, y1, x2, y2), score in zip(people.boxes, people.scores, strict=True)
    ]
    path.write_text(json.dumps(rows))
    return path


def test_the_report_says_everything_about_annotated_boxes(run: Run) -> None:
    report = run("--representation", "dark")
    [row] = report.pop("models")
    card = models.card("dark-small")
    assert report == {
        **{"posemux": report["posemux"], "benchmark": "COCO keypoints", "annotations": "bus.json"},
        **{"images": 1, "people": 2},
        "settings": {
            **{"boxes": "gt", "flip_test": False, "decode": "default"},
            **{"device": "auto", "runtime": "auto", "detector_size": 480, "max_people": 100},
        },
    }
    assert (row["name"], row["representation"]) == ("dark-small", "dark")
    assert (row["backbone"], row["input_size"]) == (card.backbone, [*card.input_size])
    assert row["weights_sha256"] == card.sha256
    counted = complexity_of(card)
    assert (row["parameters"], row["gmacs"]) == (counted.parameters, counted.gmacs)
    assert row["seconds"] > 0
    assert tuple(row["figures"]) == KEYPOINT_FIGURES
    # The torso of somebody who stands in plain view is not hard to find.
    assert row["figures"]["AP50"] > 0.4
    assert tuple(row["joints"]) == JOINT_NAMES
    shoulder = row["joints"]["left_shoulder"]
    assert shoulder["count"] == 2
    assert 0 <= shoulder["median_px"] < 60
    assert row["joints"]["nose"]["count"] == 0


@pytest.mark.parametrize("representation", models.REPRESENTATIONS)
def test_the_authors_own_arithmetic_can_be_measured(run: Run, representation: str) -> None:
    asked = ("--representation", representation, "--flip-test", "--boxes", "detector")
    ours, theirs = run(*asked), run(*asked, "--decode", "reference")
    assert ours["settings"].pop("decode") == "default"
    assert theirs["settings"].pop("decode") == "reference"
    assert theirs["settings"] == ours["settings"]
    [own], [found] = ours["models"], theirs["models"]
    # The same network on the same crops: joints are in nearly the same places.
    assert found["figures"]["AP50"] == pytest.approx(own["figures"]["AP50"], abs=0.3)
    # PCT's authors merge mirror images as we do.
    assert (found["joints"] == own["joints"]) == (representation == "pct")
    for joint, error in found["joints"].items():
        if error["count"]:
            assert error["median_px"] == pytest.approx(own["joints"][joint]["median_px"], abs=12)


def test_only_an_own_pipeline_decodes_as_the_authors_do(
    annotated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", "--annotations", str(annotated), "--images", str(BUS.parent)]
    for other in (["--url", "http://localhost:1"], ["--detector"]):
        assert cli.main([*asked, *other, "--decode", "reference"]) == 2
        assert "--decode" in capsys.readouterr().err


def test_a_file_of_the_detectors_boxes_gives_the_detectors_figures(
    run: Run, tmp_path: Path
) -> None:
    asked = ("--representation", "dark", "--boxes")
    own = run(*asked, "detector")["models"][0]
    from_file = run(*asked, str(write_detections(tmp_path / "boxes.json")))["models"][0]
    assert from_file["figures"] == pytest.approx(own["figures"])
    assert from_file["joints"] == own["joints"]


def test_a_files_scores_rank_its_people(run: Run, annotated: Path, tmp_path: Path) -> None:
    def write(name: str, right: float, wrong: float) -> str:
        people = json.loads(annotated.read_text())["annotations"]
        rows = [{**person, "score": right} for person in people]
        # The shop's sign: whatever pose is found there, it is nobody's.
        rows.append({**rows[0], "bbox": [600, 0, 100, 200], "score": wrong})
        (tmp_path / name).write_text(json.dumps(rows))
        return str(tmp_path / name)

    asked = ("--representation", "dark", "--boxes")
    trusted = run(*asked, write("good.json", 0.9, 0.0001))["models"][0]["figures"]
    doubted = run(*asked, write("bad.json", 0.0001, 0.9))["models"][0]["figures"]
    assert trusted["AP50"] > doubted["AP50"]
    assert trusted["AR50"] == doubted["AR50"]


def test_a_weights_file_is_measured_like_its_model(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "trained-here.safetensors"
    shutil.copy(WEIGHTS / models.card("dark-small").weights, copy)
    [row] = run("--weights", str(copy))["models"]
    [bundled] = run("--model", "dark-small")["models"]
    assert row["name"] == "trained-here"
    assert row["representation"] == "dark"
    assert row["figures"] == bundled["figures"]


def test_a_checkpoint_is_measured_as_the_layout_that_is_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": models.load("dark-small").module().state_dict()}, path)
    [row] = run("--weights", str(path), "--layout", "dark-small")["models"]
    [found] = run("--weights", str(path))["models"]
    assert (row["name"], found["name"]) == ("dark-small", "checkpoint")
    assert row["figures"]["AP"] == found["figures"]["AP"]


def test_a_poisoned_checkpoint_ends_with_one_line_and_does_nothing(
    annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = tmp_path / "victim"

    class Poison:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(victim),)

    path = tmp_path / "poisoned.pth"
    torch.save({"meta": Poison(), "state_dict": {}}, path)
    asked = ["evaluate", "--annotations", str(annotated), "--images", str(BUS.parent)]
    assert cli.main([*asked, "--weights", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "poisoned.pth" in line
    assert "mkdir" in line
    assert not victim.exists()


def test_flip_test_is_passed_on_and_reported(run: Run) -> None:
    report = run("--representation", "dark", "--flip-test")
    assert report["settings"]["flip_test"] is True
    plain = run("--representation", "dark")
    assert report["models"][0]["joints"] != plain["models"][0]["joints"]


def test_a_service_is_asked_the_same(run: Run, running: Running, served: str) -> None:
    report = run("--representation", "simcc", "--flip-test", "--url", served)
    assert report["settings"] == {"boxes": "gt", "flip_test": True, "url": served}
    [(image, options)] = running.pipeline.seen
    assert options.model == "simcc-small"
    assert options.flip_test
    assert options.boxes.tolist() == [[52, 396, 246, 902], [222, 405, 345, 860]]
    # This service finds every joint where the image's first pixel says.
    place = image[0, 0, :2].astype(float)
    hips = np.array([[165, 655], [315, 660]])
    expected = np.median(np.linalg.norm(hips - place, axis=1))
    assert report["models"][0]["joints"]["left_hip"]["median_px"] == pytest.approx(expected)


def as_crowdpose(coco: dict[str, Any]) -> None:
    """The annotations as CrowdPose would have them: 14 joints, no area, a crowd index."""
    coco["images"][0]["crowdIndex"] = 0.9
    for person in coco["annotations"]:
        del person["area"]
        person["keypoints"] = person["keypoints"][15:] + [0, 0, 0] * 2


def test_crowdpose_is_measured_on_the_joints_that_coco_has(
    run: Run, annotated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crowdpose = changed(annotated, as_crowdpose, "crowdpose.json")
    report = run("--representation", "dark", annotations=crowdpose)
    assert report["benchmark"] == "CrowdPose, the 12 of its 14 joints that COCO has too"
    [row] = report["models"]
    assert tuple(row["figures"]) == CROWDPOSE_FIGURES
    assert row["figures"]["AP_easy"] == row["figures"]["AP_medium"] == -1
    assert row["figures"]["AP_hard"] == pytest.approx(row["figures"]["AP"])
    assert tuple(row["joints"]) == CROWDPOSE_JOINTS[:12]
    assert row["joints"]["left_shoulder"]["count"] == 2


@pytest.fixture
def mpii(tmp_path: Path) -> Path:
    """The sample photo's two people in MPII's layout."""
    joints = np.full((2, MPII.joints, 2), 300.0)
    people = [
        {
            **{"image": "bus.jpg", "center": centre, "scale": 2.5},
            **{"joints": own.tolist(), "joints_vis": [1] * MPII.joints},
        }
        for centre, own in zip(([150, 620], [285, 600]), joints, strict=True)
    ]
    (tmp_path / "valid.json").write_text(json.dumps(people))
    truth = {
        "pos_gt_src": joints.transpose(1, 2, 0),
        "jnt_missing": np.zeros((MPII.joints, 2)),
        "headboxes_src": np.tile(np.array([[0.0, 0.0], [3e3, 4e3]])[..., None], (1, 1, 2)),
    }
    savemat(tmp_path / "gt_valid.mat", truth)
    return tmp_path / "valid.json"


def test_mpii_is_measured_with_a_model_of_its_joints(run: Run, mpii: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    architecture = Architecture(
        **{"representation": "dark", "backbone": "test_resnet.r160_in1k", "input_size": (64, 64)},
        joints=MPII.names,
    )
    weights = tmp_path / "mpii-tiny.safetensors"
    PoseModel.fresh(Card("mpii-tiny", architecture, "", "", "", "", "")).save(weights)
    report = run("--weights", str(weights), "--flip-test", annotations=mpii)
    assert report["benchmark"] == "MPII, PCKh@0.5"
    assert (report["images"], report["people"]) == (1, 2)
    figures = report["models"][0]["figures"]
    assert list(figures) == [*PCKH_PARTS, "Mean", "Mean@0.1", "Mean@0.11"]
    # Whatever an untrained network finds is within half a head of 3000 pixels.
    assert figures["Mean"] == 1


def test_mpii_is_not_measured_with_cocos_joints(
    mpii: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", "--annotations", str(mpii), "--images", str(BUS.parent)]
    for arguments in ([], ["--boxes", "detector"]):
        assert cli.main([*asked, *arguments]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "need a model of MPII's 16 joints, and this one has 17" in first
    assert "--boxes must be gt" in second


def test_the_detector_is_measured_by_its_boxes(run: Run, annotated: Path) -> None:
    def without_joints(coco: dict[str, Any]) -> None:
        for person in coco["annotations"]:
            del person["keypoints"], person["num_keypoints"]

    report = run("--detector", annotations=changed(annotated, without_joints, "boxes-only.json"))
    assert report["benchmark"] == "COCO person boxes"
    assert report["people"] == 2
    [row] = report["models"]
    assert tuple(row["figures"]) == BOX_FIGURES
    assert row["figures"]["AP50"] > 0.4
    assert row["figures"]["AR1"] <= row["figures"]["AR100"]


def test_a_table_for_people(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", "--annotations", str(annotated), "--images", str(BUS.parent)]
    assert cli.main(asked) == 0
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title == "COCO keypoints: 2 people in 1 pictures"
    assert tuple(header.split()) == KEYPOINT_FIGURES
    names = ["simcc-small", "dark-small", "pct-small"]
    assert [row.split()[0] for row in rows[:3]] == names
    # Nobody in this picture is of COCO's medium size.
    assert rows[0].split()[4] == "-"
    joints = rows[4:]
    assert joints[0].split()[-3:] == names
    assert [row.split()[0] for row in joints[1:]] == list(JOINT_NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 8}, "image_id 8 is not among the annotations' images"),
        ({"image_id": [7]}, "image_id [7] is not among"),
        ({"category_id": 17}, "category_id 17 is not a person's"),
        ({"bbox": [1, 2, 3]}, "bbox [1, 2, 3] is not a box"),
        ({"bbox": [1, 2, 0, 5]}, "is not a box with an area"),
        ({"bbox": [1, 2, 3, None]}, "is not a box"),
        ({"score": "high"}, "score 'high' is not a number"),
        ({"score": float("nan")}, "score nan is not a number"),
        ({"score": None, "drop": "score"}, "score is missing"),
    ],
)
def test_boxes_that_cannot_be_used_are_one_clear_line(
    change: dict[str, Any],
    message: str,
    annotated: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = {"image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40], "score": 0.5}
    bad = {**good, **change}
    bad.pop(bad.pop("drop", ""), None)
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps([good, bad]))
    asked = ["evaluate", "--annotations", str(annotated), "--images", str(BUS.parent)]
    assert cli.main([*asked, "--boxes", str(boxes)]) == 2
    [complaint] = capsys.readouterr().err.splitlines()
    assert complaint.startswith(f"posemux: {boxes}, entry 1: ")
    assert message in complaint
    assert "accepted are" in complaint


@pytest.mark.parametrize("content", ["no JSON", '{"boxes": []}', "[3]"])
def test_a_file_that_holds_no_boxes(
    content: str, annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = tmp_path / "boxes.json"
    boxes.write_text(content)
    asked = ["evaluate", "--annotations", str(annotated), "--images", str(BUS.parent)]
    assert cli.main([*asked, "--boxes", str(boxes)]) == 2
    [complaint] = capsys.readouterr().err.splitlines()
    assert "accepted are COCO detection results" in complaint


def first_person(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda coco: coco["annotations"][0].update(values)


def without(field: str) -> Callable[[dict[str, Any]], None]:
    return lambda coco: [person.pop(field) for person in coco["annotations"]] and None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("keypoints"), "annotation 1 has no keypoints"),
        (without("area"), "annotation 1 has no area"),
        (first_person(image_id=99), "annotation 1 is of image 99, which is not listed"),
        (first_person(bbox=[1, 2]), "annotation 1 has the bbox [1, 2]"),
        (first_person(keypoints=[1, 2, 2]), "annotation 1 has 3 numbers as keypoints"),
        (lambda coco: coco.pop("images"), "is not in COCO layout"),
        (lambda coco: coco.update(annotations=[]), "annotates nobody"),
        (
            lambda coco: [person.update(num_keypoints=0) for person in coco["annotations"]],
            "labels no joints",
        ),
        (
            lambda coco: coco["images"][0].update(file_name="x.jpg"),
            "1 of 1 pictures are missing, the first is 'x.jpg'",
        ),
    ],
)
def test_annotations_that_cannot_be_used_are_one_clear_line(
    change: Callable[[dict[str, Any]], None],
    message: str,
    annotated: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = changed(annotated, change, "bad.json")
    asked = ["evaluate", "--annotations", str(bad), "--images", str(BUS.parent)]
    assert cli.main([*asked, "--representation", "dark"]) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("posemux: ")
    assert message in complaint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detector", "--flip-test"], "--detector takes neither"),
        (["--weights", "x.safetensors", "--url", "http://localhost:1"], "takes no --weights"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors cannot be read"),
        (["--weights", str(BUS)], "bus.jpg cannot be read: it is neither safetensors nor PyTorch"),
        (["--weights", str(BUS.parent)], "cannot be read: Is a directory"),
        (["--layout", "dark-small"], "--layout says what --weights are"),
        (["--url", "http://127.0.0.1:1", "--model", "dark-small"], "does not answer"),
        (["--boxes", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_does_not_go_together_is_one_clear_line(
    arguments: list[str], message: str, annotated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", "--annotations", str(annotated), "--images", str(BUS.parent)]
    assert cli.main([*asked, *arguments]) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("posemux: ")
    assert message in complaint


def test_a_crowd_is_nobody(annotated: Path, run: Run) -> None:
    def crowd(coco: dict[str, Any]) -> None:
        coco["annotations"][1]["iscrowd"] = 1

    report = run("--representation", "dark", annotations=changed(annotated, crowd, "crowd.json"))
    assert report["people"] == 1
    assert report["models"][0]["joints"]["left_hip"]["count"] == 1
