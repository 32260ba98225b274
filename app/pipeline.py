"""Images to poses: find people, cut them out, estimate, map back. No threads, no HTTP."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.crops import ImageBatch, crop
from app.detector import Detections, Detector
from app.errors import NotFiniteError
from app.metrics import Metrics
from models import reference
from models.geometry import apply_affines, crop_regions, invert_affines
from models.pose_model import PoseModel
from models.runtime import Estimator, TorchRunner, estimator
from models.skeletons import Skeleton

#: Joints below this score do not count in a person's score. For raw scores mmpose's and PCT's
#: `kpt_thr`; for calibrated ones, which are seldom so low, what gave the best AP of detected people
#: on coco-dev.
_JOINT_THRESHOLDS = {"raw": 0.2, "calibrated": 0.05}
#: Detected people whose poses are more alike than this are one person (object keypoint similarity).
_SAME_POSE = 0.9
#: Images in a batch that warms up the detector.
_SEVERAL = 8
#: How often a warm pose model is timed: the quickest is what it takes undisturbed.
_TRIALS = 3


@dataclass(frozen=True, slots=True)
class Options:
    """What one image's request asked for."""

    model: str
    """The pose model's name."""
    boxes: npt.NDArray[np.float32] | None = None
    """`(P, 4)` as `x1, y1, x2, y2` in image pixels: the people, so that nobody is looked for. Every
    box is answered, in this order, and none is suppressed."""
    min_score: float = 0.3
    """Detected people of lower scores are left out."""
    max_people: int = 100
    """Of more detected people, the best so many are kept."""
    flip_test: bool = False
    """Estimate the mirrored crop as well and average: a little better, at twice the price."""
    explain: bool = False
    """Tell what the joints were decoded from."""

    @property
    def crops(self) -> int:
        """How many there are to be, mirrored ones included, as far as is known beforehand."""
        return 0 if self.boxes is None else len(self.boxes) * (1 + self.flip_test)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the joints of one person were decoded from."""

    crop_size: tuple[int, int]
    """Width and height of the crop that the network saw."""
    crop_to_image: npt.NDArray[np.float64]
    """`(2, 3)`: the affine map from crop pixels to image pixels."""
    seen: dict[str, npt.NDArray[Any]]
    """By name what the representation's `explain` tells, without its first dimension."""


@dataclass(frozen=True, slots=True)
class Poses:
    """The answer for one image: detected people best first, one's own boxes in their order."""

    model: str
    """The pose model's name."""
    boxes: npt.NDArray[np.float32]
    """`(P, 4)` as `x1, y1, x2, y2` in image pixels."""
    scores: npt.NDArray[np.float32]
    """`(P,)` box score times the mean score of the joints above 0.05 (0.2 where scores are not
    calibrated), 0 where there is none; the score of one's own box is 1."""
    keypoints: npt.NDArray[np.float32]
    """`(P, K, 3)`: x, y in image pixels, score in [0, 1], of the pose model's K joints."""
    timings: dict[str, float]
    """Seconds in each stage of the batch that this image was in."""
    box_scores: npt.NDArray[np.float32]
    """`(P,)` the detector's score of each box; 1 for one's own."""
    explanations: tuple[Explanation, ...] | None = None
    """One a person, where asked for: of the crop as it is, not of the mirrored one."""
    track_ids: npt.NDArray[np.int64] | None = None
    """`(P,)`, where people are followed from image to image: who is the same one, from 1; 0 for
    whoever is not followed yet."""


class Pipeline:
    """The way from images to poses.

    Args:
        detector: finds the people.
        pose_models: by name, all on `device`.
        device: where everything is computed.
        max_batch_people: crops in one forward pass of a pose network, mirrored ones included.
        metrics: where stages, batches, images and persons are counted, if anywhere.
        as_authors: whether outputs become keypoints and scores by the arithmetic of the models'
            authors, see `models.reference`, whose scores have no bounds.
        estimators: from crops to joints, by the pose models' names; PyTorch alone computes for
            those that are not here.
    """

    def __init__(
        self,
        detector: Detector,
        pose_models: Mapping[str, PoseModel],
        device: torch.device,
        max_batch_people: int,
        metrics: Metrics | None = None,
        as_authors: bool = False,
        estimators: Mapping[str, Estimator] | None = None,
    ) -> None:
        self._detector = detector
        self._pose_models = dict(pose_models)
        self._estimators = {
            name: estimator(model, TorchRunner(model.network))
            for name, model in pose_models.items()
        }
        self._estimators.update(estimators or {})
        self._device = device
        self._max_batch_people = max_batch_people
        self._metrics = metrics or Metrics()
        self.as_authors = as_authors
        for name, model in self._pose_models.items():
            card = model.card
            self._metrics.model_info.labels(
                name, card.representation, card.backbone, str(device)
            ).set(1)
            self._metrics.persons.labels(card.representation)

    def __call__(
        self, images: Sequence[npt.NDArray[np.uint8]], options: Sequence[Options]
    ) -> list[Poses]:
        """Estimate the poses in a batch of images.

        Args:
            images: `(H, W, 3)` uint8 RGB each, of any sizes.
            options: what is asked of each; models must be among the loaded ones.

        Returns:
            One answer for each image, in their order.

        Raises:
            NotFiniteError: a network's output is not finite.
        """
        if not images:
            return []
        work = _Work(self._device)
        answers = self._estimate(images, options, work)
        self._count(answers, work)
        return answers

    def warm_up(self) -> dict[str, float]:
        """Go once through everything, so that no request pays for what only the first one needs.

        Returns:
            Seconds from one person's box to the joints, by each pose model, once it is warm.
        """
        image = np.full((480, 640, 3), 127, np.uint8)
        box = np.array([[160, 0, 480, 480]], np.float32)
        # An accelerator picks its kernels by batch size; a CPU would only lose time here.
        crowds = {1, self._max_batch_people} if self._device.type == "cuda" else {1}
        for name in self._pose_models:
            for crowd in crowds:
                options = Options(name, boxes=box.repeat(crowd, 0))
                self._estimate([image], [options], _Work(self._device))
        # One image and several take different ways through a detector on a CPU.
        options = Options(next(iter(self._pose_models)))
        for count in (1, _SEVERAL):
            self._estimate([image] * count, [options] * count, _Work(self._device))
        return {
            name: min(self._seconds([image], Options(name, boxes=box)) for _ in range(_TRIALS))
            for name in self._pose_models
        }

    def _seconds(self, images: Sequence[npt.NDArray[np.uint8]], options: Options) -> float:
        work = _Work(self._device)
        self._estimate(images, [options], work)
        return sum(work.seconds[stage] for stage in ("crop", "pose", "postprocess"))

    @torch.inference_mode()
    def _estimate(
        self, images: Sequence[npt.NDArray[np.uint8]], options: Sequence[Options], work: _Work
    ) -> list[Poses]:
        with work.stage("detect"):
            batch = ImageBatch.upload(images, self._device)
            people = self._find(batch, options, work)

        by_model: dict[str, list[int]] = {}
        for index, (option, found) in enumerate(zip(options, people, strict=True)):
            if len(found.boxes):
                by_model.setdefault(option.model, []).append(index)
        explained: dict[int, list[Explanation]] = {
            index: [] for index, option in enumerate(options) if option.explain
        }
        estimated = [
            self._pose(name, batch, members, options, people, explained, work)
            for name, members in by_model.items()
        ]

        with work.stage("postprocess"):
            shapes = [
                (len(found.boxes), self._pose_models[option.model].skeleton.joints, 3)
                for option, found in zip(options, people, strict=True)
            ]
            keypoints = [np.empty(shape, np.float32) for shape in shapes]
            if estimated:
                order = [index for members in by_model.values() for index in members]
                ends = np.cumsum([math.prod(shapes[index]) for index in order])
                # Flat: models differ in how many joints they have.
                on_host = torch.cat([part.flatten() for part in estimated]).cpu().numpy()
                if not np.isfinite(on_host).all():
                    raise NotFiniteError
                for index, own in zip(order, np.split(on_host, ends[:-1]), strict=True):
                    keypoints[index] = own.reshape(shapes[index])
            parts = zip(options, people, keypoints, strict=True)
            finished = [
                self._finish(*part, explained.get(index), work.seconds)
                for index, part in enumerate(parts)
            ]
        return finished

    def _find(self, batch: ImageBatch, options: Sequence[Options], work: _Work) -> list[Detections]:
        """Each image's people: its own boxes, or the detector's, for all such images at once."""
        searched = [index for index, option in enumerate(options) if option.boxes is None]
        found: dict[int, Detections] = {}
        if searched:
            work.batches.append(("detect", len(searched)))
            lowest = min(options[index].min_score for index in searched)
            detections = self._detector([batch[index] for index in searched], lowest)
            found = dict(zip(searched, detections, strict=True))
        people = []
        for index, option in enumerate(options):
            if option.boxes is not None:
                people.append(Detections(option.boxes, np.ones(len(option.boxes), np.float32)))
            else:
                # Best first, so those above the image's own threshold are the first so many.
                enough = int((found[index].scores >= option.min_score).sum())
                first = slice(min(enough, option.max_people))
                people.append(Detections(found[index].boxes[first], found[index].scores[first]))
        return people

    def _pose(
        self,
        name: str,
        batch: ImageBatch,
        members: Sequence[int],
        options: Sequence[Options],
        people: Sequence[Detections],
        explained: Mapping[int, list[Explanation]],
        work: _Work,
    ) -> Tensor:
        """Keypoints `(P, K, 3)` in image pixels of all people of these images, on the device.

        Explanations of the people of those images that are in `explained` are added to it.
        """
        model = self._pose_models[name]
        counts = [len(people[index].boxes) for index in members]
        images = np.repeat(members, counts)
        owners = torch.from_numpy(images).to(self._device)
        boxes = torch.from_numpy(np.concatenate([people[index].boxes for index in members]))
        affines = model.affines(boxes.to(self._device))
        flips = np.repeat([options[index].flip_test for index in members], counts)
        step = max(self._max_batch_people // 2, 1) if flips.any() else self._max_batch_people
        parts = []
        for start in range(0, len(owners), step):
            part = slice(start, start + step)
            with work.stage("crop"):
                crops = crop(batch, owners[part], affines[part], model.crop_form)
            with work.stage("pose"):
                raw, keypoints = self._estimated(name, crops, flips[part], work)
            with work.stage("postprocess"):
                inverse = invert_affines(affines[part])
                points = apply_affines(inverse, keypoints[..., :2])
                parts.append(torch.cat((points.float(), keypoints[..., 2:]), -1))
                asked = np.isin(images[part], list(explained))
                if asked.any():
                    told = _explain(model, raw, inverse, self._rows_of(asked))
                    for image, explanation in zip(images[part][asked], told, strict=True):
                        explained[image].append(explanation)
        return torch.cat(parts)

    def _estimated(
        self, name: str, crops: Tensor, flips: npt.NDArray[np.bool_], work: _Work
    ) -> tuple[Any, Tensor]:
        """Raw outputs of all crops, and then of the mirrored ones where asked, and keypoints.

        The keypoints `(N, K, 3)` are in crop pixels, averaged with the mirrored crop's where asked.
        """
        model, count = self._pose_models[name], len(crops)
        mirrored = self._rows_of(flips) if flips.any() else None
        if mirrored is not None:
            crops = torch.cat((crops, crops[mirrored].flip(-1)))
        work.batches.append(("pose", len(crops)))
        raw, keypoints = self._estimators[name](crops)
        if self.as_authors:
            keypoints = reference.decode(model, _rows(raw, slice(count)))
            if mirrored is not None:
                own, flipped = _rows(raw, mirrored), _rows(raw, slice(count, None))
                keypoints[mirrored] = reference.decode(model, own, flipped)
        elif mirrored is not None:
            keypoints, flipped = keypoints[:count], keypoints[count:]
            keypoints[mirrored] = model.flip_merge(keypoints[mirrored], flipped)
        return raw, keypoints

    def _finish(
        self,
        option: Options,
        people: Detections,
        keypoints: npt.NDArray[np.float32],
        explanations: Sequence[Explanation] | None,
        seconds: dict[str, float],
    ) -> Poses:
        """Score one image's people and, where they were detected, drop duplicates and sort."""
        model = self._pose_models[option.model]
        threshold = _JOINT_THRESHOLDS[model.card.scores]
        if self.as_authors:
            threshold = model.card.profile.joint_threshold
        counted = np.where(keypoints[..., 2] > threshold, keypoints[..., 2], 0)
        joints = np.maximum((counted > 0).sum(-1), 1).astype(np.float32)
        scores = people.scores * counted.sum(-1) / joints
        boxes, box_scores = people.boxes, people.scores
        if option.boxes is None and len(boxes):
            kept = distinct_people(
                boxes, scores, keypoints, model.skeleton, model.input_size, model.padding
            )
            boxes, scores, keypoints = boxes[kept], scores[kept], keypoints[kept]
            box_scores = box_scores[kept]
            explanations = explanations and [explanations[person] for person in kept]
        told = None if explanations is None else tuple(explanations)
        return Poses(option.model, boxes, scores, keypoints, seconds, box_scores, told)

    def _rows_of(self, chosen: npt.NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(chosen.nonzero()[0]).to(self._device)

    def _count(self, answers: Sequence[Poses], work: _Work) -> None:
        metrics = self._metrics
        for stage, seconds in work.seconds.items():
            metrics.stage_duration.labels(stage).observe(seconds)
        for stage, size in work.batches:
            metrics.batch_size.labels(stage).observe(size)
        metrics.images.inc(len(answers))
        persons: Counter[str] = Counter()
        for answer in answers:
            persons[self._pose_models[answer.model].card.representation] += len(answer.scores)
        for representation, count in persons.items():
            metrics.persons.labels(representation).inc(count)
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            metrics.device_memory.labels("allocated").set(torch.cuda.memory_allocated(self._device))
            metrics.device_memory.labels("reserved").set(torch.cuda.memory_reserved(self._device))
            metrics.device_memory.labels("free").set(free)
            metrics.device_memory.labels("total").set(total)


def _rows(raw: Any, rows: slice | Tensor) -> Any:
    """A network's outputs for some of its crops."""
    return tuple(part[rows] for part in raw) if isinstance(raw, tuple) else raw[rows]


def _explain(model: PoseModel, raw: Any, inverse: Tensor, rows: Tensor) -> list[Explanation]:
    """Explanations of some people, on the host: a copy of its own, which only they pay for."""
    seen = {name: part.numpy(force=True) for name, part in model.explain(_rows(raw, rows)).items()}
    affines = inverse[rows].numpy(force=True)
    return [
        Explanation(model.input_size, affine, {name: part[person] for name, part in seen.items()})
        for person, affine in enumerate(affines)
    ]


def distinct_people(
    boxes: npt.NDArray[np.float32],
    scores: npt.NDArray[np.floating],
    keypoints: npt.NDArray[np.floating],
    skeleton: Skeleton,
    input_size: tuple[int, int],
    padding: float,
) -> npt.NDArray[np.intp]:
    """Of one image's detected people, those who are not another one over again.

    Args:
        boxes: `(P, 4)` as `x1, y1, x2, y2` in image pixels.
        scores: `(P,)`.
        keypoints: `(P, K, 2 or more)`: x, y in image pixels.
        skeleton: the K joints.
        input_size: width and height of the pose network's input.
        padding: how much larger than the box its crop is.

    Returns:
        Indices of those who stay, best first.
    """
    _, sizes = crop_regions(torch.from_numpy(boxes), input_size, padding)
    return oks_nms(keypoints, scores, sizes.prod(-1).numpy(), _SAME_POSE, skeleton.sigmas)


def oks_nms(
    keypoints: npt.NDArray[np.floating],
    scores: npt.NDArray[np.floating],
    areas: npt.NDArray[np.floating],
    threshold: float,
    sigmas: Sequence[float],
) -> npt.NDArray[np.intp]:
    """Non-maximum suppression of one image's poses by their object keypoint similarity.

    Args:
        keypoints: `(P, K, 2 or more)`: x, y in image pixels.
        scores: `(P,)`.
        areas: `(P,)` square pixels of each person's padded box.
        threshold: of two poses more alike than this, the one of the lower score goes.
        sigmas: K numbers, each joint's spread relative to the person's size.

    Returns:
        Indices of those who stay, best first.
    """
    order = np.argsort(-scores, kind="stable")
    points, sizes = keypoints[order, :, :2].astype(np.float64), areas[order]
    distances = ((points[:, None] - points) ** 2).sum(-1)
    spread = (2 * np.asarray(sigmas)) ** 2 * (sizes[:, None] + sizes)[..., None]
    similar = np.exp(-distances / spread).mean(-1) > threshold
    suppresses = np.triu(similar, 1)
    # Somebody stays whom nobody who stays suppresses. Each round settles at least one more person,
    # in the order of their scores, and one without a change settles all.
    stays = np.ones(len(order), np.bool_)
    while True:
        settled = ~(suppresses & stays[:, None]).any(0)
        if (settled == stays).all():
            return order[stays]
        stays = settled


class _Work:
    """What one batch took: seconds in each stage, and the sizes of what went through a network."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = dict.fromkeys(("detect", "crop", "pose", "postprocess"), 0.0)
        self.batches: list[tuple[str, int]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[name] += time.perf_counter() - begin
