"""People as training samples: a crop, its joints, and which of them are labelled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from models import geometry
from models.training.datasets import DatasetError, KeypointSet, Person, read_keypoints

#: Bytes of decoded pictures that are kept: about 4,600 of COCO.
MEMORY = 4 * 1024**3


@dataclass(frozen=True)
class Augmentation:
    """How a training sample is varied; every probability and range may be 0.

    Args:
        scale: largest relative change of the crop's size, either way.
        shift: largest shift of the crop's centre, as a share of the crop's size.
        rotation: turns are normally distributed with a spread of two thirds of this many degrees,
            and end at one and a half times as many.
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


class People:
    """Everybody with labelled joints in some sets, and their pictures.

    Pictures are kept decoded as long as there is memory for them; those beyond are read and decoded
    whenever they are asked for, which is slower and gives the same samples.

    Args:
        sets: the sets, each with the share of its people that an epoch sees.
        data: the folder that holds them.
        memory: how many bytes of decoded pictures are kept from now on; see `hold`.

    Raises:
        DatasetError: a set cannot be used, the sets' joints differ, or a picture does not decode.
    """

    def __init__(self, sets: dict[str, float], data: Path, memory: int = MEMORY) -> None:
        self.people: list[Person] = []
        #: For each set: where its people start and end, and the share an epoch sees.
        self.spans: list[tuple[int, int, float]] = []
        self.sets = [read_keypoints(data, name) for name in sets]
        self.skeleton = self.sets[0].skeleton
        self._owners: list[KeypointSet] = []
        self._decoded: dict[tuple[str, str], npt.NDArray[np.uint8]] = {}
        for read, share in zip(self.sets, sets.values(), strict=True):
            if read.skeleton != self.skeleton:
                raise DatasetError(
                    f"{read.name} has other joints than {self.sets[0].name}: "
                    f"{list(read.skeleton.names)}, not {list(self.skeleton.names)}"
                )
            self.spans.append((len(self.people), len(self.people) + len(read.people), share))
            self.people += read.people
            self._owners += [read] * len(read.people)
        if memory:
            self.hold(memory)

    def hold(self, memory: int) -> None:
        """Decode pictures and keep them until that many bytes are full."""
        held = 0
        for index in tqdm(range(len(self.people)), "decoding", unit="person", disable=None):
            key = self._key(index)
            if key not in self._decoded:
                image = self.image(index)
                held += image.nbytes
                if held > memory:
                    break
                self._decoded[key] = image

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """The RGB picture `(H, W, 3)` that a person is in.

        Raises:
            DatasetError: it does not decode.
        """
        key = self._key(index)
        if key in self._decoded:
            return self._decoded[key]
        encoded = self._owners[index].pictures.read(key[1])
        # Annotations are in the pixels as they are stored, whatever way up a camera held them.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
        if image is None:
            raise DatasetError(f"picture {key[1]!r} of {key[0]} does not decode")
        return image.astype(np.uint8, copy=False)

    def _key(self, index: int) -> tuple[str, str]:
        return self._owners[index].name, self.people[index].file_name

    def epoch_size(self) -> int:
        """How many people an epoch sees."""
        return sum(round((last - first) * share) for first, last, share in self.spans)

    def epoch(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """A shuffled epoch's people: of each set its share, drawn anew every epoch."""
        drawn = [
            rng.permutation(np.arange(first, last))[: round((last - first) * share)]
            for first, last, share in self.spans
        ]
        return rng.permutation(np.concatenate(drawn))


class Samples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Crops of people: uint8 RGB `(3, H, W)`, joints `(K, 2)` in crop pixels, labelled `(K,)`.

    A sample is asked for by epoch and person, and its randomness comes from these and the seed
    alone: a resumed training sees what the interrupted one would have seen, with any number of
    workers.

    Args:
        people: whom to draw from.
        input_size: width and height of the crops.
        augmentation: how they are varied; None for the plain crop of evaluation.
        seed: of everything random.
        padding: how much larger than the box the crop is.
        mapping: how pixels lie on the crop's region; see `models.geometry`.
    """

    def __init__(
        self,
        people: People,
        input_size: tuple[int, int],
        augmentation: Augmentation | None = None,
        seed: int = 0,
        padding: float = 1.25,
        mapping: geometry.Mapping = "affine",
    ) -> None:
        self.people = people
        self.input_size = input_size
        self.augmentation = augmentation
        self.seed = seed
        self.padding = padding
        self.mapping = mapping

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        epoch, index = key
        person = self.people.people[index]
        rng = np.random.default_rng((self.seed, epoch, index))
        keypoints, labelled = person.keypoints[:, :2], person.keypoints[:, 2] > 0
        box = person.box
        if self.augmentation is not None:
            upper = np.array(self.people.skeleton.upper_body)
            box = _half_body(box, keypoints, labelled, upper, self.augmentation, rng)
        boxes = torch.from_numpy(box)[None]
        [affine] = random_affines(
            boxes, self.input_size, self.padding, self.augmentation, rng, self.mapping
        ).numpy()
        picture = self.people.image(index)
        crop = cv2.warpAffine(picture, affine, self.input_size, flags=cv2.INTER_LINEAR)
        moved = keypoints @ affine[:, :2].T + affine[:, 2]
        if self.augmentation is not None:
            if rng.random() < self.augmentation.flip_probability:
                crop = cv2.flip(crop, 1)
                moved = np.stack((self.input_size[0] - 1 - moved[:, 0], moved[:, 1]), 1)
                mirrored = list(self.people.skeleton.mirrored)
                moved, labelled = moved[mirrored], labelled[mirrored]
            crop = _recolour(crop.astype(np.uint8, copy=False), self.augmentation, rng)
            _cut_out(crop, self.augmentation, rng)
        return (
            torch.from_numpy(crop).permute(2, 0, 1),
            torch.from_numpy(moved.astype(np.float32)),
            torch.from_numpy(labelled.astype(np.float32)),
        )


def loader(
    samples: Samples, batches: Iterable[list[tuple[int, int]]], workers: int = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of samples, in order.

    Args:
        samples: what to draw from.
        batches: epoch and person of each sample of each batch.
        workers: processes that prepare batches ahead, for as long as there are any. They are
            forked, and share the pictures in memory.

    Raises:
        DatasetError: a picture does not decode.
    """
    loaded: DataLoader[tuple[Tensor, Tensor, Tensor]] = DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
        # Else every loader would draw from the generator that the training draws from.
        generator=torch.Generator(),
    )
    try:
        yield from loaded
    except DatasetError as error:
        # A worker's error comes wrapped in its traceback, whose last line is the message.
        *_, line = str(error).strip().splitlines()
        raise DatasetError(line.rpartition("DatasetError: ")[2]) from None


def in_order(rows: Sequence[int], batch: int) -> Iterator[list[tuple[int, int]]]:
    """Batches of plain samples of these people, for `loader`; the last one may be smaller."""
    for first in range(0, len(rows), batch):
        yield [(0, int(row)) for row in rows[first : first + batch]]


def _one_thread(_: int) -> None:
    """OpenCV's own threads would fight over the cores that the workers share."""
    cv2.setNumThreads(0)


def random_affines(
    boxes: Tensor,
    input_size: tuple[int, int],
    padding: float,
    augmentation: Augmentation | None,
    rng: np.random.Generator,
    mapping: geometry.Mapping = "affine",
) -> Tensor:
    """The maps from image to crop pixels, varied by the augmentation.

    Args:
        boxes: `(N, 4)` as `x1, y1, x2, y2` in image pixels.
        input_size: width and height of the crops.
        padding: how much larger than the box the crop is.
        augmentation: how they are varied; None for plain crops.
        rng: of everything random.
        mapping: how pixels lie on the crop's region; see `models.geometry`.

    Returns:
        `(N, 2, 3)` float64.
    """
    centres, sizes = geometry.crop_regions(boxes, input_size, padding)
    if augmentation is None:
        return geometry.affines(centres, sizes, input_size, mapping=mapping)
    count, spread, limit = len(boxes), augmentation.scale, 1.5 * augmentation.rotation
    changes = 1 + rng.normal(0, spread / 2, count).clip(-spread, spread)
    turned = rng.random(count) < augmentation.rotation_probability
    degrees = turned * rng.normal(0, limit / 2.25, count).clip(-limit, limit)
    shifts = rng.uniform(-augmentation.shift, augmentation.shift, (count, 2))
    centres = centres + sizes * torch.from_numpy(shifts)
    sizes = sizes * torch.from_numpy(changes)[:, None]
    return geometry.affines(centres, sizes, input_size, torch.from_numpy(degrees), mapping)


def _half_body(
    box: npt.NDArray[np.float32],
    keypoints: npt.NDArray[np.float32],
    labelled: npt.NDArray[np.bool_],
    upper: npt.NDArray[np.bool_],
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Sometimes the box of only the upper or lower joints (HRNet, `half_body_transform`)."""
    if labelled.sum() <= 8 or rng.random() >= augmentation.half_body_probability:
        return box
    half = upper if rng.random() < 0.6 else ~upper
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
