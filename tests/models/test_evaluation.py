from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.coco import OKS_SIGMAS
from models.evaluation import (
    CROWDPOSE_JOINTS,
    CROWDPOSE_SIGMAS,
    coco_figures,
    crowdpose_figures,
    joint_errors,
    match_people,
    pckh,
)

WIDTH, HEIGHT = 100, 200


def person(number: int, image: int, joints: int) -> dict[str, Any]:
    """Somebody whose joints are all annotated, on a grid within the box."""
    points = np.stack((10 + 5.0 * np.arange(joints), 20 + 9.0 * np.arange(joints)), 1)
    return {
        **{"id": number, "image_id": image, "category_id": 1, "iscrowd": 0},
        "bbox": [0, 0, WIDTH, HEIGHT],
        "keypoints": np.column_stack((points, np.full(joints, 2))).flatten().tolist(),
        "num_keypoints": joints,
    }


def dataset(people: list[dict[str, Any]], crowd: list[float]) -> dict[str, Any]:
    return {
        "images": [{"id": index, "crowdIndex": value} for index, value in enumerate(crowd, 1)],
        "annotations": people,
        "categories": [{"id": 1, "name": "person"}],
    }


def found(
    annotation: dict[str, Any], score: float, similarity: float, sigmas: Any, area: float
) -> dict[str, Any]:
    """A pose whose every joint has that object keypoint similarity to the annotated one."""
    keypoints = np.array(annotation["keypoints"], float).reshape(-1, 3)
    keypoints[:, 0] += 2 * np.array(sigmas) * np.sqrt(-2 * area * np.log(similarity))
    image = annotation["image_id"]
    flat = keypoints.flatten().tolist()
    return {"image_id": image, "category_id": 1, "score": score, "keypoints": flat}


def test_coco_figures_are_those_worked_out_by_hand() -> None:
    # The surest of two people is exactly right, the other right up to a threshold of 0.7.
    area = 0.5 * WIDTH * HEIGHT
    people = [{**person(number, number, 17), "area": area} for number in (1, 2)]
    results = [
        found(people[0], 0.9, 1.0, OKS_SIGMAS, area),
        found(people[1], 0.8, 0.72, OKS_SIGMAS, area),
    ]
    figures = coco_figures(dataset(people, [0, 0]), results)
    # Of the 101 recalls 51 are reached with half of the people, all with both.
    assert figures["AP"] == pytest.approx((5 * 101 + 5 * 51) / 1010)
    assert figures["AP50"] == pytest.approx(1)
    assert figures["AP75"] == pytest.approx(51 / 101)
    assert figures["AR"] == pytest.approx(0.75)
    assert figures["AP_M"] == -1
    assert figures["AP_L"] == pytest.approx(figures["AP"])


def test_a_box_in_the_results_changes_no_keypoint_figure() -> None:
    # pycocotools alone would take the far-off pose for one of the box's size.
    area = 0.5 * WIDTH * HEIGHT
    people = [{**person(1, 1, 17), "area": area}]
    missed = found(people[0], 0.9, 1e-9, OKS_SIGMAS, area)
    right = found(people[0], 0.8, 1.0, OKS_SIGMAS, area)
    plain = coco_figures(dataset(people, [0]), [missed, right])
    boxed = coco_figures(dataset(people, [0]), [{**missed, "bbox": [0, 0, 10, 10]}, right])
    assert plain == boxed
    assert plain["AP_L"] == pytest.approx(0.5)


def test_no_results_are_no_precision(tmp_path: Path) -> None:
    assert set(coco_figures(tmp_path / "never-read.json", []).values()) == {0.0}
    assert set(crowdpose_figures(tmp_path / "never-read.json", []).values()) == {0.0}


def test_coco_figures_read_a_file_and_leave_annotations_alone(tmp_path: Path) -> None:
    people = [{**person(1, 1, 17), "area": 5000}]
    truth = dataset(people, [0])
    before = json.dumps(truth)
    path = tmp_path / "truth.json"
    path.write_text(before)
    results = [found(people[0], 0.9, 0.8, OKS_SIGMAS, 5000)]
    assert coco_figures(path, results) == coco_figures(truth, results)
    assert json.dumps(truth) == before


def test_crowdpose_figures_are_those_worked_out_by_hand() -> None:
    # The area is 0.53 of the box: an `area` of the annotation's own must not count.
    area = 0.53 * WIDTH * HEIGHT
    people = [{**person(number, number, 14), "area": 1.0} for number in (1, 2, 3)]
    results = [
        found(people[0], 0.9, 1.0, CROWDPOSE_SIGMAS, area),
        found(people[1], 0.8, 0.72, CROWDPOSE_SIGMAS, area),
        found(people[2], 0.7, 0.3, CROWDPOSE_SIGMAS, area),
    ]
    figures = crowdpose_figures(dataset(people, [0.1, 0.8, 0.81]), results)
    assert figures["AP_easy"] == pytest.approx(1)
    assert figures["AP_medium"] == pytest.approx(0.5)
    assert figures["AP_hard"] == 0
    # Two of three people up to 0.7, then one: 67 and 34 of the 101 recalls.
    assert figures["AP"] == pytest.approx((5 * 67 + 5 * 34) / 1010)
    assert figures["AP50"] == pytest.approx(67 / 101)
    assert figures["AP75"] == pytest.approx(34 / 101)
    assert figures["AR"] == pytest.approx((5 * 2 + 5 * 1) / 30)


def test_crowdpose_without_a_kind_of_picture_has_no_figure_for_it() -> None:
    people = [person(1, 1, 14)]
    area = 0.53 * WIDTH * HEIGHT
    results = [found(people[0], 0.9, 1.0, CROWDPOSE_SIGMAS, area)]
    figures = crowdpose_figures(dataset(people, [0.5]), results)
    assert figures["AP_easy"] == figures["AP_hard"] == -1
    assert figures["AP_medium"] == pytest.approx(1)


def test_cocos_joints_are_compared_with_crowdposes_on_the_twelve_of_both() -> None:
    annotated = person(1, 1, 14)
    keypoints = np.array(annotated["keypoints"]).reshape(-1, 3)
    # Somebody of whom only head and neck are labelled cannot be compared, and is no miss.
    faceless = person(2, 1, 14)
    faceless["keypoints"] = [0, 0, 0] * 12 + [5, 5, 2] * 2
    coco = np.concatenate((np.full((5, 3), 1e4), keypoints[:12]))
    answer = {"image_id": 1, "category_id": 1, "score": 1.0, "keypoints": coco.flatten().tolist()}
    figures = crowdpose_figures(dataset([annotated, faceless], [0.5]), [answer])
    assert figures["AP"] == pytest.approx(1)
    assert figures["AR"] == pytest.approx(1)
    assert len(CROWDPOSE_SIGMAS) == len(CROWDPOSE_JOINTS) == 14


def test_people_are_matched_by_their_boxes_each_once() -> None:
    annotated = np.array([[0, 0, 10, 10], [2, 0, 10, 10], [50, 50, 5, 5]], float)
    found_boxes = np.array([[1.5, 0, 10, 10], [0, 0, 10, 10], [90, 90, 5, 5]], float)
    assert match_people(found_boxes, annotated).tolist() == [1, 0, -1]
    assert match_people(np.empty((0, 4)), annotated).tolist() == [-1, -1, -1]
    # Two annotations of one box: in their order.
    twice = np.array([[0, 0, 10, 10]] * 2, float)
    assert match_people(twice, twice).tolist() == [0, 1]


def test_joint_errors_are_shares_and_medians_of_what_is_labelled() -> None:
    truth = np.zeros((3, 2, 2))
    predicted = truth.copy()
    area = 100.0**2
    # The first joint's term falls below one half at 2 sigma sqrt(2 ln 2) times 100 pixels.
    edge = 2 * 0.05 * np.sqrt(2 * np.log(2)) * 100
    predicted[:, 0, 0] = [edge - 0.01, edge + 0.01, 1]
    predicted[:, 1, 1] = [1e6, 1e6, 1e6]
    labelled = np.array([[True, False], [True, False], [False, False]])
    first, second = joint_errors(predicted, truth, labelled, np.full(3, area), (0.05, 0.1))
    assert first["count"] == 2
    assert first["within"] == 0.5
    assert first["median_px"] == pytest.approx(edge)
    assert first["median_relative"] == pytest.approx(edge / 100)
    assert second == {"count": 0, "within": -1, "median_px": -1, "median_relative": -1}


def test_pckh_by_hand() -> None:
    # One person whose head is 60 by 80 pixels: 0.6 of its diagonal are 60, half of that 30.
    head_boxes = np.array([[10, 10, 70, 90]] * 2, float)
    truth = np.full((2, 16, 2), 200.0)
    predicted = truth - 1  # MPII counts pixels from 1
    visible = np.ones((2, 16), np.bool_)
    predicted[0, 9, 0] += 30  # the head's top: just right
    predicted[:, 12, 1] += 30.1  # one shoulder: both people's just wrong
    predicted[0, 10, 0] += 500  # a wrist, wrong
    visible[1, 10] = False
    predicted[:, 6:8] += 500  # pelvis and thorax: do not count
    figures = pckh(predicted, truth, visible, head_boxes)
    assert figures["Head"] == 1
    assert figures["Shoulder"] == 0.5
    assert figures["Wrist"] == 0.5
    assert figures["Elbow"] == figures["Hip"] == figures["Knee"] == figures["Ankle"] == 1
    # Of 27 joints of 14 kinds three are wrong: the mean is over joints, not over parts.
    assert figures["Mean"] == pytest.approx(24 / 27)
    strict = pckh(predicted, truth, visible, head_boxes, 0.1)
    assert strict["Head"] == 0.5
    assert strict["Mean"] == pytest.approx(23 / 27)


def test_pckh_of_a_part_that_nobody_has() -> None:
    visible = np.ones((1, 16), np.bool_)
    visible[:, 9] = False
    points = np.zeros((1, 16, 2))
    figures = pckh(points - 1, points, visible, np.array([[0, 0, 3.0, 4.0]]))
    assert figures["Head"] == -1
    assert figures["Mean"] == 1
