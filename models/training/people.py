"""People as training samples: a crop, its joints, and which of them are labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from models import geometry
from models.coco import JOINTS, MIRRORED
from models.training.datasets import CocoSet, DatasetError

_UPPER_BODY = np.arange(JOINTS) < 11


@dataclass(frozen=True)
class Augmentation:
    """How a training sample is varied; every probability and range may be 0.

    Args:
        scale: largest relative change of the crop's size, either way.
        shift: largest shift of the crop's centre, as a share of the crop's size.
        rotation: largest turn in degrees, either way.
        rotation_probability: how often the crop is turned at all.
        flip_probability: how often it is mirrored.
        half_body_probability: how often only the upper or the lower body is cropped.
        colour: largest relative change of brightness, contrast and each channel's gain.
        cutout_probability: how often a rectangle of the crop is painted grey.
    """

    scale: float = 0.35
    shift: float = 0.08
    rotation: float = 40.0
    rotation_probability: float = 0.6
    flip_probability: float = 0.5
    half_body_probability: float = 0.3
    colour: float = 0.25
    cutout_probability: float = 0.3


@dataclass(frozen=True)
class Person:
    """One person of a set: where the picture is and what is known of the person."""

    picture: int
    box: npt.NDArray[np.float32]
    keypoints: npt.NDArray[np.float32]
    image_id: int


class People:
    """Everybody with labelled joints in some sets, and their decoded pictures, held in memory.

    Args:
        sets: the sets, each with the share of its people that an epoch sees.
        data: the folder that holds them.

    Raises:
        DatasetError: a set is missing, has nobody with joints, or a picture does not decode.
    """

    def __init__(self, sets: dict[str, float], data: Path) -> None:
        self.pictures: list[npt.NDArray[np.uint8]] = []
        self.people: list[Person] = []
        #: For each set: where its people start and end, and the share an epoch sees.
        self.spans: list[tuple[int, int, float]] = []
        for name, share in sets.items():
            first = len(self.people)
            people = CocoSet(data, name)
            for picture in tqdm(people, desc=f"reading {name}", unit="picture", disable=None):
                chosen = [person for person in picture.people if person.get("num_keypoints", 0) > 0]
                if not chosen:
                    continue
                encoded = np.frombuffer(people.pictures.read(picture.file_name), np.uint8)
                image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
                if image is None:
                    raise DatasetError(f"picture {picture.file_name!r} of {name} does not decode")
                for person in chosen:
                    x, y, w, h = person["bbox"]
                    self.people.append(
                        Person(
                            len(self.pictures),
                            np.array([x, y, x + w, y + h], np.float32),
                            np.array(person["keypoints"], np.float32).reshape(JOINTS, 3),
                            person["image_id"],
                        )
                    )
                self.pictures.append(image.astype(np.uint8, copy=False))
            if len(self.people) == first:
                raise DatasetError(f"nobody in {name} has labelled keypoints")
            self.spans.append((first, len(self.people), share))

    def epoch(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """A shuffled epoch's people: of each set its share, drawn anew every epoch."""
        drawn = [
            rng.permutation(np.arange(first, last))[: round((last - first) * share)]
            for first, last, share in self.spans
        ]
        return rng.permutation(np.concatenate(drawn))


class Samples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Crops of some people: uint8 RGB `(3, H, W)`, joints `(K, 2)` in crop pixels, labelled `(K,)`.

    Every sample's randomness comes from the seed, the epoch and the person alone, so that a resumed
    training sees what the interrupted one would have seen, with any number of workers.

    Args:
        people: whom to draw from.
        order: which of them, in which order.
        input_size: width and height of the crops.
        augmentation: how they are varied; None for the plain crop of evaluation.
        seed: seed and epoch number.
        padding: how much larger than the box the crop is.
    """

    def __init__(
        self,
        people: People,
        order: Sequence[int] | npt.NDArray[np.int64],
        input_size: tuple[int, int],
        augmentation: Augmentation | None = None,
        seed: tuple[int, int] = (0, 0),
        padding: float = 1.25,
    ) -> None:
        self.people = people
        self.order = order
        self.input_size = input_size
        self.augmentation = augmentation
        self.seed = seed
        self.padding = padding

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        person = self.people.people[self.order[index]]
        rng = np.random.default_rng((*self.seed, int(self.order[index])))
        keypoints, labelled = person.keypoints[:, :2], person.keypoints[:, 2] > 0
        box = person.box
        if self.augmentation is not None:
            box = _half_body(box, keypoints, labelled, self.augmentation, rng)
        affine = random_affine(box, self.input_size, self.padding, self.augmentation, rng)
        crop = cv2.warpAffine(
            self.people.pictures[person.picture],
            affine,
            self.input_size,
            flags=cv2.INTER_LINEAR,
        ).astype(np.uint8, copy=False)
        moved = keypoints @ affine[:, :2].T + affine[:, 2]
        if self.augmentation is not None:
            if rng.random() < self.augmentation.flip_probability:
                crop = np.ascontiguousarray(crop[:, ::-1])
                moved = np.stack((self.input_size[0] - 1 - moved[:, 0], moved[:, 1]), 1)
                moved, labelled = moved[list(MIRRORED)], labelled[list(MIRRORED)]
            crop = _recolour(crop, self.augmentation, rng)
            _cut_out(crop, self.augmentation, rng)
        return (
            torch.from_numpy(crop).permute(2, 0, 1),
            torch.from_numpy(moved.astype(np.float32)),
            torch.from_numpy(labelled.astype(np.float32)),
        )


def random_affine(
    box: npt.NDArray[np.float32],
    input_size: tuple[int, int],
    padding: float,
    augmentation: Augmentation | None,
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """The `(2, 3)` map from image to crop pixels, varied by the augmentation."""
    centre, size = geometry.crop_regions(torch.from_numpy(box), input_size, padding)
    scale, degrees = input_size[0] / size[0], torch.zeros(())
    if augmentation is not None:
        spread = augmentation.scale
        scale = scale / float(np.clip(1 + rng.normal(0, spread / 2), 1 - spread, 1 + spread))
        if rng.random() < augmentation.rotation_probability:
            limit = augmentation.rotation
            degrees += float(np.clip(rng.normal(0, limit / 1.5), -1.5 * limit, 1.5 * limit))
        centre = centre + size * torch.from_numpy(
            rng.uniform(-augmentation.shift, augmentation.shift, 2)
        )
    return geometry.affines(centre, scale, input_size, degrees).numpy()


def _half_body(
    box: npt.NDArray[np.float32],
    keypoints: npt.NDArray[np.float32],
    labelled: npt.NDArray[np.bool_],
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Sometimes the box of only the upper or lower joints (HRNet, `half_body_transform`)."""
    if labelled.sum() <= 8 or rng.random() >= augmentation.half_body_probability:
        return box
    half = _UPPER_BODY if rng.random() < 0.6 else ~_UPPER_BODY
    chosen = keypoints[labelled & half]
    if len(chosen) < 3:
        return box
    low, high = chosen.min(0), chosen.max(0)
    centre, reach = (low + high) / 2, np.maximum(high - low, 1) * 0.6
    return np.concatenate((centre - reach, centre + reach))


def _recolour(
    crop: npt.NDArray[np.uint8], augmentation: Augmentation, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Another brightness, contrast and white balance."""
    amount = augmentation.colour
    gain = rng.uniform(1 - amount, 1 + amount) * rng.uniform(1 - amount / 3, 1 + amount / 3, 3)
    bias = rng.uniform(-amount, amount) * 128
    table = np.arange(256)[:, None] * gain + 128 * (1 - gain) + bias
    return cv2.LUT(crop, table.clip(0, 255).astype(np.uint8)[None]).astype(np.uint8, copy=False)


def _cut_out(
    crop: npt.NDArray[np.uint8], augmentation: Augmentation, rng: np.random.Generator
) -> None:
    """Sometimes paint a rectangle grey, in place: joints behind it are still asked for."""
    if rng.random() >= augmentation.cutout_probability:
        return
    height, width = crop.shape[:2]
    w, h = (rng.uniform(0.15, 0.4, 2) * (width, height)).astype(int)
    x, y = rng.integers(width - w), rng.integers(height - h)
    crop[y : y + h, x : x + w] = rng.integers(256)
