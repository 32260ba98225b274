"""Annotated sets that poses are compared with, and the figures that belong to each.

COCO, CrowdPose and MPII differ in their files, joints and figures. Here each becomes pictures, the
boxes of people whose joints are known, and a way from a results list to figures.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.coco import JOINT_NAMES, JOINTS, OKS_SIGMAS
from models.evaluation import (
    CROWDPOSE_JOINTS,
    CROWDPOSE_SIGMAS,
    SHARED_JOINTS,
    Dataset,
    Results,
    coco_figures,
    crowdpose_figures,
    crowdpose_view,
    joint_errors,
    match_people,
    pckh,
)
from models.skeletons import MPII
from models.training.datasets import DatasetError, Person, read_mpii

#: COCO's number for a person, in annotations and results.
PERSON = 1

Figures = dict[str, float]
JointErrors = dict[str, dict[str, float]]


class Benchmark(ABC):
    """A set of pictures whose people's joints are annotated.

    Args:
        pictures: `id` and `file_name` of each picture.
        boxes: by picture, `(P, 4)` as `x1, y1, x2, y2`: the people whose joints are known.
    """

    def __init__(self, pictures: list[Dataset], boxes: dict[int, npt.NDArray[np.float32]]) -> None:
        self.pictures = pictures
        self.boxes = boxes

    @property
    def people(self) -> int:
        """How many people's joints are known."""
        return sum(map(len, self.boxes.values()))

    @abstractmethod
    def title(self, joints: Sequence[str]) -> str:
        """What a pose model of these joints is compared on, in words.

        Raises:
            DatasetError: it cannot be compared.
        """

    @abstractmethod
    def measure(self, results: Results) -> tuple[Figures, JointErrors]:
        """The set's figures, and each joint's errors by its name.

        Args:
            results: COCO results, with `bbox` and `keypoints`; each picture's own boxes in order
                where it was those that were asked for.
        """


def read_benchmark(path: Path) -> Benchmark:
    """COCO's or CrowdPose's annotations, or MPII's as HRNet's authors publish them.

    CrowdPose's are told by the `crowdIndex` of every picture, MPII's by being a list; its
    `gt_NAME.mat`, which knows the size of heads, lies beside its `NAME.json`.

    Raises:
        DatasetError: the file has none of these layouts, or labels no joint.
        ModuleNotFoundError: MPII's needs scipy, of the extra `eval`.
    """
    content = _read_json(path)
    if isinstance(content, list):
        return MpiiBenchmark(path)
    dataset = _people_of(content, path, _POSE_FIELDS)
    if not any(map(is_labelled, dataset["annotations"])):
        raise DatasetError(
            f"{path} labels no joints: a detector's boxes can be compared with it, poses cannot"
        )
    crowdpose = all("crowdIndex" in picture for picture in dataset["images"])
    joints = len(CROWDPOSE_JOINTS) if crowdpose else JOINTS
    for person in dataset["annotations"]:
        if len(person["keypoints"]) != 3 * joints:
            raise DatasetError(
                f"{path}, annotation {person['id']} has {len(person['keypoints'])} numbers as "
                "keypoints; accepted are COCO's 17 joints, and CrowdPose's 14 where every image "
                "has its crowdIndex, with three numbers each"
            )
        if not crowdpose and "area" not in person:
            raise DatasetError(f"{path}, annotation {person['id']} has no area")
    return CrowdPoseBenchmark(dataset) if crowdpose else CocoBenchmark(dataset)


def read_boxes(path: Path) -> Dataset:
    """The people of a file in COCO layout, for their boxes alone.

    Raises:
        DatasetError: it is not in that layout, or annotates nobody.
    """
    return _people_of(_read_json(path), path, _BOX_FIELDS)


# ----------------------------------------------------------------------------- COCO and CrowdPose


class CocoBenchmark(Benchmark):
    """COCO's 17 joints and ten figures.

    Args:
        dataset: in COCO layout, people only.
    """

    def __init__(self, dataset: Dataset) -> None:
        known: dict[int, list[list[float]]] = {}
        for person in filter(is_labelled, dataset["annotations"]):
            known.setdefault(person["image_id"], []).append(person["bbox"])
        boxes = {picture: corners(np.array(own, np.float32)) for picture, own in known.items()}
        super().__init__(dataset["images"], boxes)
        self.dataset = dataset

    def title(self, joints: Sequence[str]) -> str:
        """See Benchmark."""
        if tuple(joints) != JOINT_NAMES:
            raise DatasetError(
                f"COCO's annotations need a model of COCO's 17 joints, {_has(joints)}"
            )
        return "COCO keypoints"

    def measure(self, results: Results) -> tuple[Figures, JointErrors]:
        """See Benchmark."""
        errors = _joint_errors(self.dataset, results, JOINT_NAMES, OKS_SIGMAS)
        return coco_figures(self.dataset, results), errors


class CrowdPoseBenchmark(CocoBenchmark):
    """CrowdPose's 14 joints and nine figures; models of COCO's joints on the twelve of both.

    Args:
        dataset: in CrowdPose's layout, people only.
    """

    def title(self, joints: Sequence[str]) -> str:
        """See Benchmark."""
        if tuple(joints) == JOINT_NAMES:
            return f"CrowdPose, the {SHARED_JOINTS} of its 14 joints that COCO has too"
        shared = CROWDPOSE_JOINTS[:SHARED_JOINTS]
        if len(joints) != len(CROWDPOSE_JOINTS) or tuple(joints[:SHARED_JOINTS]) != shared:
            raise DatasetError(
                "CrowdPose's annotations need a model of its 14 joints or of COCO's 17, "
                f"{_has(joints)}"
            )
        return "CrowdPose"

    def measure(self, results: Results) -> tuple[Figures, JointErrors]:
        """See Benchmark."""
        dataset, compared = crowdpose_view(self.dataset, results)
        joints = len(dataset["annotations"][0]["keypoints"]) // 3
        names, sigmas = CROWDPOSE_JOINTS[:joints], CROWDPOSE_SIGMAS[:joints]
        errors = _joint_errors(dataset, compared, names, sigmas)
        return crowdpose_figures(self.dataset, results), errors


def _joint_errors(
    dataset: Dataset, results: Results, names: Sequence[str], sigmas: Sequence[float]
) -> JointErrors:
    """How far each joint of the annotated people is off who were found, by its name."""
    found: dict[int, Results] = {}
    for result in results:
        found.setdefault(result["image_id"], []).append(result)
    annotated: dict[int, list[Dataset]] = {}
    for person in filter(is_labelled, dataset["annotations"]):
        annotated.setdefault(person["image_id"], []).append(person)
    pairs = []
    for picture, people in annotated.items():
        candidates = found.get(picture, [])
        boxes = np.array([person["bbox"] for person in people], np.float64)
        own = np.array([result["bbox"] for result in candidates], np.float64).reshape(-1, 4)
        for person, match in zip(people, match_people(own, boxes), strict=True):
            if match >= 0:
                pairs.append((candidates[match]["keypoints"], person["keypoints"], person["area"]))
    predicted, truth = (
        np.array([pair[side] for pair in pairs], np.float64).reshape(-1, len(names), 3)
        for side in (0, 1)
    )
    areas = np.array([area for *_, area in pairs], np.float64)
    errors = joint_errors(predicted[..., :2], truth[..., :2], truth[..., 2] > 0, areas, sigmas)
    return dict(zip(names, errors, strict=True))


# -------------------------------------------------------------------------------------------- MPII


class MpiiBenchmark(Benchmark):
    """MPII's 16 joints and PCKh, of single people whose place and size are given.

    Args:
        path: HRNet's `NAME.json`; `gt_NAME.mat` lies beside it.

    Raises:
        DatasetError: one of the two is missing or damaged, or they are not of the same people.
        ModuleNotFoundError: scipy, of the extra `eval`, is not installed.
    """

    def __init__(self, path: Path) -> None:
        people = read_mpii(path)
        self._truth, self._visible, self._heads = _read_heads(path.with_name(f"gt_{path.stem}.mat"))
        if len(people) != len(self._truth):
            raise DatasetError(
                f"{path} has {len(people)} people with labelled joints, its gt_{path.stem}.mat "
                f"{len(self._truth)}"
            )
        self._people: dict[int, list[int]] = {}
        for number, person in enumerate(people):
            self._people.setdefault(person.image_id, []).append(number)
        super().__init__(
            [
                {"id": id_, "file_name": people[own[0]].file_name}
                for id_, own in self._people.items()
            ],
            {id_: _boxes(people, own) for id_, own in self._people.items()},
        )

    def title(self, joints: Sequence[str]) -> str:
        """See Benchmark."""
        if tuple(joints) != MPII.names:
            raise DatasetError(
                f"MPII's annotations need a model of MPII's 16 joints, {_has(joints)}"
            )
        return "MPII, PCKh@0.5"

    def measure(self, results: Results) -> tuple[Figures, JointErrors]:
        """PCKh@0.5 by part, its mean, the mean at 0.1, and at 0.11 as HRNet's code has it."""
        predicted = np.full((*self._visible.shape, 2), np.inf)
        waiting = {picture: iter(own) for picture, own in self._people.items()}
        for result in results:
            keypoints = np.array(result["keypoints"], np.float64).reshape(-1, 3)
            predicted[next(waiting[result["image_id"]])] = keypoints[:, :2]
        figures = pckh(predicted, self._truth, self._visible, self._heads)
        for threshold in (0.1, 0.11):
            shares = pckh(predicted, self._truth, self._visible, self._heads, threshold)
            figures[f"Mean@{threshold}"] = shares["Mean"]
        return figures, {}


def _boxes(people: Sequence[Person], chosen: Sequence[int]) -> npt.NDArray[np.float32]:
    return np.stack([people[number].box for number in chosen])


def _read_heads(
    path: Path,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """MPII's joints `(P, 16, 2)`, which are annotated `(P, 16)`, and head boxes `(P, 4)`."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise DatasetError(f"{path} is missing: MPII's figures need its head boxes")
    try:
        read = loadmat(path)
        truth = np.asarray(read["pos_gt_src"], np.float64).transpose(2, 0, 1)
        visible = np.asarray(read["jnt_missing"]).T == 0
        heads = np.asarray(read["headboxes_src"], np.float64).transpose(2, 0, 1).reshape(-1, 4)
    except (MatReadError, OSError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is not MPII's ground truth: {error}") from error
    if truth.shape != (len(heads), MPII.joints, 2) or visible.shape != truth.shape[:2]:
        raise DatasetError(f"{path} is not MPII's ground truth: joints {truth.shape}")
    return truth, visible, heads


# ------------------------------------------------------------------------------------------ files

#: What pycocotools reads of every person.
_BOX_FIELDS = ("id", "image_id", "category_id", "bbox", "iscrowd", "area")
_POSE_FIELDS = ("id", "image_id", "category_id", "bbox", "iscrowd", "keypoints", "num_keypoints")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DatasetError(f"{path} is not in COCO layout: {error}") from error


def _people_of(content: Any, path: Path, fields: Sequence[str]) -> Dataset:
    """The people of a file in COCO layout, each one checked."""
    try:
        pictures = content["images"]
        known = {picture["id"] for picture in pictures if picture["file_name"]}
        people = [person for person in content["annotations"] if person["category_id"] == PERSON]
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not in COCO layout: {error!r}") from error
    for person in people:
        name = f"{path}, annotation {person.get('id')}"
        if missing := [field for field in fields if field not in person]:
            raise DatasetError(f"{name} has no {', '.join(missing)}")
        if person["image_id"] not in known:
            raise DatasetError(f"{name} is of image {person['image_id']!r}, which is not listed")
        if not is_box(person["bbox"]):
            raise DatasetError(f"{name} has the bbox {person['bbox']!r}, not x, y, width, height")
    if not people:
        raise DatasetError(f"{path} annotates nobody: no annotation has category_id {PERSON}")
    return {
        "images": pictures,
        "annotations": people,
        "categories": [{"id": PERSON, "name": "person"}],
    }


def is_labelled(person: Dataset) -> bool:
    """Whether any joint of this annotation counts."""
    return bool(person["num_keypoints"]) and not person["iscrowd"]


def is_number(value: object) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_box(value: object) -> bool:
    """Whether this is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def corners(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Boxes `(P, 4)` as `x, y, w, h` to `x1, y1, x2, y2`."""
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)


def _has(joints: Sequence[str]) -> str:
    return f"and this one has {len(joints)}, from {joints[0]} to {joints[-1]}"
