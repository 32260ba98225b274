"""How well poses and boxes fit their annotations: COCO, CrowdPose, MPII, and joint by joint.

COCO's and CrowdPose's average precision are pycocotools' own. Every figure is in [0, 1], and -1
where nothing is annotated that it could be measured on, as pycocotools has it.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.coco import JOINTS, OKS_SIGMAS

#: COCO's ten keypoint figures, in the order in which pycocotools returns them.
KEYPOINT_FIGURES = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L")

#: COCO's twelve box figures; AR1, AR10 and AR100 allow so many boxes in a picture.
BOX_FIGURES = (
    *("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L"),
    *("AR1", "AR10", "AR100", "AR_S", "AR_M", "AR_L"),
)

#: CrowdPose's nine figures: COCO's without the areas, and AP by how crowded a picture is.
CROWDPOSE_FIGURES = (
    *("AP", "AP50", "AP75", "AR", "AR50", "AR75"),
    *("AP_easy", "AP_medium", "AP_hard"),
)

#: CrowdPose's joints; the first twelve are COCO's last twelve, in the same order.
CROWDPOSE_JOINTS = (
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
    *("head_top", "neck"),
)
CROWDPOSE_SIGMAS = (*OKS_SIGMAS[5:], 0.079, 0.079)
#: How many joints COCO and CrowdPose share.
SHARED_JOINTS = JOINTS - 5
#: The largest crowd index of an easy and of a medium picture (CrowdPose, section 5.1).
_CROWDED = (0.1, 0.8)
#: A CrowdPose person's area as a share of the box: its annotations have no area of their own.
_CROWDPOSE_AREA = 0.53

#: The parts of MPII's table and the joints of MPII's 16 that each averages.
PCKH_PARTS = {
    "Head": (9,),
    "Shoulder": (12, 13),
    "Elbow": (11, 14),
    "Wrist": (10, 15),
    "Hip": (2, 3),
    "Knee": (1, 4),
    "Ankle": (0, 5),
}
#: Pelvis and thorax: points between joints, which MPII's mean leaves out.
_NOT_IN_PCKH_MEAN = (6, 7)
#: The head's size is so much of its box's diagonal (MPII's evaluation, `SC_BIAS`).
_HEAD_SIZE = 0.6

Dataset = dict[str, Any]
Results = list[dict[str, Any]]


# ------------------------------------------------------------------------------ average precision


def coco_figures(
    annotations: Path | Dataset,
    results: Results,
    kind: Literal["keypoints", "bbox"] = "keypoints",
) -> dict[str, float]:
    """COCO's figures of a results list.

    Args:
        annotations: the ground truth in COCO layout, or the file that holds it.
        results: COCO results: `image_id`, `category_id`, `score` and `keypoints` or `bbox`.
        kind: what is compared.

    Returns:
        Each figure by its name; all 0 where there are no results.

    Raises:
        ModuleNotFoundError: pycocotools, of the extra `eval`, is not installed.
    """
    names = KEYPOINT_FIGURES if kind == "keypoints" else BOX_FIGURES
    if not results:
        return dict.fromkeys(names, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluation(_dataset(annotations), results, kind, OKS_SIGMAS)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(names, evaluation.stats, strict=True)}


def crowdpose_figures(annotations: Path | Dataset, results: Results) -> dict[str, float]:
    """CrowdPose's figures of a results list (Li et al., CVPR 2019).

    An easy picture's crowd index is at most 0.1, a medium one's at most 0.8. Results of COCO's 17
    joints are compared on the twelve that both sets have; see `crowdpose_view`.

    Args:
        annotations: the ground truth in CrowdPose's layout, or the file that holds it.
        results: COCO results with 14 joints in CrowdPose's order or 17 in COCO's.

    Returns:
        Each figure by its name; all 0 where there are no results.

    Raises:
        ModuleNotFoundError: pycocotools, of the extra `eval`, is not installed.
    """
    if not results:
        return dict.fromkeys(CROWDPOSE_FIGURES, 0.0)
    dataset, results = crowdpose_view(_dataset(annotations), results)
    sigmas = CROWDPOSE_SIGMAS[: len(results[0]["keypoints"]) // 3]
    crowded = np.searchsorted(_CROWDED, [image["crowdIndex"] for image in dataset["images"]])
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluation(dataset, results, "keypoints", sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        all_areas = evaluation.stats[[0, 1, 2, 5, 6, 7]].tolist()
        by_crowd = []
        for level in range(len(_CROWDED) + 1):
            chosen = [
                image["id"]
                for image, found in zip(dataset["images"], crowded, strict=True)
                if found == level
            ]
            evaluation.params.imgIds = chosen
            if chosen:
                evaluation.evaluate()
                evaluation.accumulate()
            precision = evaluation.eval["precision"][:, :, :, 0]
            by_crowd.append(float(precision.mean()) if chosen else -1.0)
    return dict(zip(CROWDPOSE_FIGURES, all_areas + by_crowd, strict=True))


def crowdpose_view(dataset: Dataset, results: Results) -> tuple[Dataset, Results]:
    """CrowdPose's annotations and results in a form in which they compare as COCO's do.

    A person's area is 0.53 of the box, whatever the annotation says, as in CrowdPose's own tool.
    Results of COCO's 17 joints keep the twelve from the shoulders down, and so do the annotations:
    nobody knows how well such a model would find the top of the head and the neck.

    Args:
        dataset: in CrowdPose's layout.
        results: with 14 joints in CrowdPose's order or 17 in COCO's.

    Returns:
        Annotations and results with the same joints, 14 or 12.
    """
    from_coco = bool(results) and len(results[0]["keypoints"]) == 3 * JOINTS
    joints = SHARED_JOINTS if from_coco else len(CROWDPOSE_JOINTS)
    people = []
    for person in dataset["annotations"]:
        keypoints = person["keypoints"][: 3 * joints]
        people.append(
            {
                **person,
                "keypoints": keypoints,
                "num_keypoints": sum(label > 0 for label in keypoints[2::3]),
                "area": _CROWDPOSE_AREA * person["bbox"][2] * person["bbox"][3],
            }
        )
    if from_coco:
        results = [
            {**result, "keypoints": result["keypoints"][-3 * joints :]} for result in results
        ]
    return {**dataset, "annotations": people}, results


def _dataset(annotations: Path | Dataset) -> Dataset:
    if isinstance(annotations, Path):
        read: Dataset = json.loads(annotations.read_text())
        return read
    # pycocotools marks the annotations while it works.
    return {**annotations, "annotations": [dict(person) for person in annotations["annotations"]]}


def _evaluation(dataset: Dataset, results: Results, kind: str, sigmas: Sequence[float]) -> Any:
    """The evaluation of pycocotools, ready to run."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = dataset
    truth.createIndex()
    # Of poses with boxes pycocotools would take the box's area for the pose's, which decides about
    # AP_M and AP_L: an official results file has no boxes.
    fields = ("image_id", "category_id", "score", kind)
    answers = [{field: result[field] for field in fields} for result in results]
    evaluation = COCOeval(truth, truth.loadRes(answers), kind)
    evaluation.params.kpt_oks_sigmas = np.array(sigmas)
    return evaluation


# -------------------------------------------------------------------------------- joint by joint


def match_people(
    found: npt.NDArray[np.floating], annotated: npt.NDArray[np.floating], least: float = 0.5
) -> npt.NDArray[np.intp]:
    """Who of those found is which annotated person of a picture, by their boxes alone.

    Pairs are made greedily, those that overlap most first. Poses play no part, so that people whose
    pose came out badly are not left out.

    Args:
        found: `(N, 4)` boxes, `x, y, w, h` in pixels.
        annotated: `(P, 4)` likewise.
        least: a pair's least intersection over union.

    Returns:
        `(P,)` index into `found`, -1 for somebody who was not found.
    """
    matches = np.full(len(annotated), -1)
    if not len(found) or not len(annotated):
        return matches
    low = np.maximum(found[:, None, :2], annotated[:, :2])
    high = np.minimum(found[:, None, :2] + found[:, None, 2:], annotated[:, :2] + annotated[:, 2:])
    common = (high - low).clip(0).prod(-1)
    total = found[:, 2:].prod(-1)[:, None] + annotated[:, 2:].prod(-1) - common
    overlaps = common / np.maximum(total, np.finfo(np.float64).tiny)
    while (best := overlaps.argmax()) >= 0 and overlaps.flat[best] >= least:
        row, column = divmod(int(best), len(annotated))
        matches[column] = row
        overlaps[row] = overlaps[:, column] = -1
    return matches


def joint_errors(
    predicted: npt.NDArray[np.floating],
    truth: npt.NDArray[np.floating],
    labelled: npt.NDArray[np.bool_],
    areas: npt.NDArray[np.floating],
    sigmas: Sequence[float],
) -> list[dict[str, float]]:
    """How far each joint is off.

    Args:
        predicted: `(P, K, 2)` in pixels.
        truth: `(P, K, 2)` in pixels.
        labelled: `(P, K)` which joints are annotated; the others do not count.
        areas: `(P,)` each person's area in square pixels.
        sigmas: K spreads of the object keypoint similarity.

    Returns:
        For each joint `count`, how many are labelled; `within`, the share whose term of the object
        keypoint similarity is at least 0.5; `median_px`, the median error in pixels; and
        `median_relative`, the median of errors divided by the square root of the person's area.
    """
    distances = np.linalg.norm(predicted - truth, axis=-1)
    relative = distances / np.sqrt(np.maximum(areas, 1))[:, None]
    within = np.exp(-((relative / (2 * np.asarray(sigmas))) ** 2) / 2) >= 0.5
    rows = []
    for joint, counted in enumerate(labelled.T):
        row = {"count": int(counted.sum()), "within": -1.0, "median_px": -1.0}
        row["median_relative"] = -1.0
        if counted.any():
            row["within"] = float(within[counted, joint].mean())
            row["median_px"] = float(np.median(distances[counted, joint]))
            row["median_relative"] = float(np.median(relative[counted, joint]))
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------- PCKh


def pckh(
    predicted: npt.NDArray[np.floating],
    truth: npt.NDArray[np.floating],
    visible: npt.NDArray[np.bool_],
    head_boxes: npt.NDArray[np.floating],
    threshold: float = 0.5,
) -> dict[str, float]:
    """MPII's percentage of correct keypoints, measured by the size of the head.

    A joint is correct that is off by at most `threshold` times 0.6 of the head box's diagonal. A
    part is the plain mean of its left and right joint; the mean is over all joints of all people
    but pelvis and thorax (Andriluka et al., CVPR 2014, and its `evalMPII.m`, which HRNet's
    `lib/dataset/mpii.py` follows).

    HRNet's figure named 0.1 is taken one step too far along its curve, at 0.11: compare published
    ones with that.

    Args:
        predicted: `(P, 16, 2)` in pixels from 0.
        truth: `(P, 16, 2)` as MPII annotates them, in Matlab's pixels from 1.
        visible: `(P, 16)` which joints are annotated.
        head_boxes: `(P, 4)` as `x1, y1, x2, y2`.
        threshold: in sizes of the head.

    Returns:
        The share that is correct, by part (`PCKH_PARTS`), and their `Mean`.
    """
    heads = _HEAD_SIZE * np.linalg.norm(head_boxes[:, 2:] - head_boxes[:, :2], axis=-1)
    distances = np.linalg.norm(predicted + 1 - truth, axis=-1)
    # Multiplied rather than divided: a head of no size has no correct joints, and no warning.
    correct = (distances <= threshold * heads[:, None]) & visible
    counts, hits = visible.sum(0), correct.sum(0)
    shares = np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)
    figures = {part: float(shares[list(joints)].mean()) for part, joints in PCKH_PARTS.items()}
    counted = np.delete(np.arange(len(counts)), _NOT_IN_PCKH_MEAN)
    total = counts[counted].sum()
    figures["Mean"] = float(hits[counted].sum() / total) if total else np.nan
    return {name: -1.0 if np.isnan(value) else value for name, value in figures.items()}
