"""Sets of people in COCO layout: `NAME.json` with its pictures in `NAME/` or in `NAME-*.tar`."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class DatasetError(ValueError):
    """A data set that cannot be trained on or evaluated: the message says which file and why."""


class Pictures:
    """The encoded pictures of a set, by file name, out of a folder or out of tar files.

    The tars are indexed once and read in place: nothing is unpacked to disk.
    """

    def __init__(self, *sources: Path) -> None:
        self._folders = [source for source in sources if source.is_dir()]
        self._members: dict[str, tuple[Path, int, int]] = {}
        for source in sources:
            if source.is_dir():
                continue
            if not source.is_file() or not tarfile.is_tarfile(source):
                raise DatasetError(f"{source} is neither a folder nor a tar file of pictures")
            with tarfile.open(source) as tar:
                for member in tar:
                    if member.isfile():
                        self._members[member.name] = (source, member.offset_data, member.size)

    def read(self, file_name: str) -> bytes:
        """The bytes of one picture as it is stored.

        Raises:
            DatasetError: no source holds a picture of that name.
        """
        if file_name in self._members:
            source, offset, size = self._members[file_name]
            with source.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        for folder in self._folders:
            path = folder / file_name
            if path.is_file():
                return path.read_bytes()
        raise DatasetError(f"picture {file_name!r} is missing from its data set")


@dataclass(frozen=True)
class Picture:
    """One picture of a set and its people."""

    file_name: str
    width: int
    height: int
    people: list[dict[str, Any]]


class CocoSet:
    """One set of people: its pictures and their COCO annotations.

    Args:
        data: the folder that holds `NAME.json` and the pictures in `NAME/` or `NAME-*.tar`.
        name: the set's name.

    Raises:
        DatasetError: the annotations or the pictures are missing or are not in COCO layout.
    """

    def __init__(self, data: Path, name: str) -> None:
        self.name = name
        annotations = data / f"{name}.json"
        if not annotations.is_file():
            known = sorted(path.stem for path in data.glob("*.json"))
            raise DatasetError(f"{annotations} is missing; {data} holds the sets {known}")
        sources = sorted(data.glob(f"{name}-*.tar"))
        if (data / name).is_dir():
            sources.append(data / name)
        if not sources:
            raise DatasetError(f"no pictures for {name}: neither {data / name}/ nor {name}-*.tar")
        try:
            coco = json.loads(annotations.read_text())
            images, people = coco["images"], coco["annotations"]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{annotations} is not in COCO layout: {error!r}") from error
        by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images}
        for person in people:
            by_image[person["image_id"]].append(person)
        self.pictures = Pictures(*sources)
        self.entries = [
            Picture(image["file_name"], image["width"], image["height"], by_image[image["id"]])
            for image in images
        ]

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def is_crowd_like(
    boxes: npt.NDArray[np.float32], labelled: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Which boxes are probably crowd regions that lost their `iscrowd` mark.

    A box without labelled joints that holds the centres of three or more other boxes is taken for
    a region rather than a person; training a detector on it would teach it huge boxes.

    Args:
        boxes: `(N, 4)` boxes of one picture, `x, y, w, h` in pixels.
        labelled: `(N,)` whether the person has any labelled joint.

    Returns:
        `(N,)` booleans.
    """
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    low, high = boxes[:, None, :2], boxes[:, None, :2] + boxes[:, None, 2:]
    inside = ((centres[None] > low) & (centres[None] < high)).all(-1)
    crowded: npt.NDArray[np.bool_] = inside.sum(1) - 1 >= 3
    return ~labelled & crowded
