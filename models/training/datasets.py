"""Sets of people in COCO layout or MPII's, with their pictures in a folder or in tar files."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.skeletons import COCO, MPII, Skeleton, SkeletonError, skeleton_of


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

    @property
    def names(self) -> list[str]:
        """All file names, in order."""
        inside = (path for folder in self._folders for path in folder.iterdir() if path.is_file())
        return sorted({*self._members, *(path.name for path in inside)})

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

    def missing(self, file_names: Iterable[str]) -> list[str]:
        """Those of these pictures that no source holds."""
        return [
            name
            for name in file_names
            if name not in self._members
            and not any((folder / name).is_file() for folder in self._folders)
        ]


@dataclass(frozen=True)
class Picture:
    """One picture of a set and its people."""

    file_name: str
    width: int
    height: int
    people: list[dict[str, Any]]


class CocoSet:
    """One set of people in COCO layout: its pictures and their annotations.

    Args:
        data: the folder that holds the set.
        name: the set's name; see `locate`.

    Raises:
        DatasetError: the annotations or the pictures are missing or are not in COCO layout.
    """

    def __init__(self, data: Path, name: str) -> None:
        self.name = name
        annotations, sources = locate(data, name)
        self.entries, _ = _coco_pictures(_read_json(annotations), annotations)
        self.pictures = Pictures(*sources)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


# -------------------------------------------------------------------------- people with keypoints


@dataclass(frozen=True)
class Person:
    """One person with labelled joints.

    Args:
        file_name: the picture's.
        image_id: the picture's; for MPII, which has none, a number for each picture.
        box: `x1, y1, x2, y2` in image pixels.
        keypoints: `(K, 3)` x and y in image pixels, and 0 where the joint is not labelled, 1 where
            it is labelled but hidden, 2 where it is visible.
    """

    file_name: str
    image_id: int
    box: npt.NDArray[np.float32]
    keypoints: npt.NDArray[np.float32]


@dataclass(frozen=True)
class KeypointSet:
    """Everybody with labelled joints in one set.

    Args:
        name: the set's name.
        annotations: its annotation file.
        coco: whether that is in COCO layout, as pycocotools reads it.
        skeleton: its joints.
        pictures: its encoded pictures.
        people: in the order of the pictures.
    """

    name: str
    annotations: Path
    coco: bool
    skeleton: Skeleton
    pictures: Pictures
    people: list[Person]


def read_keypoints(data: Path, name: str) -> KeypointSet:
    """A set in COCO layout, or MPII as HRNet's authors publish it, checked from end to end.

    Args:
        data: the folder that holds the set.
        name: the set's name; see `locate`.

    Raises:
        DatasetError: a file is missing, has another layout, labels nobody's joints, or names
            pictures that are not there.
    """
    annotations, sources = locate(data, name)
    content = _read_json(annotations)
    if isinstance(content, list):
        skeleton, people = MPII, _mpii_people(content, annotations)
    else:
        entries, skeleton = _coco_pictures(content, annotations)
        people = _coco_people(entries, skeleton, annotations)
    if not people:
        raise DatasetError(f"nobody in {name} has labelled keypoints")
    pictures = Pictures(*sources)
    missing = pictures.missing(dict.fromkeys(person.file_name for person in people))
    if missing:
        raise DatasetError(
            f"{len(missing)} pictures of {name} are missing, the first is {missing[0]!r}"
        )
    return KeypointSet(name, annotations, isinstance(content, dict), skeleton, pictures, people)


def read_mpii(annotations: Path) -> list[Person]:
    """MPII's people with labelled joints by one of HRNet's json lists.

    Raises:
        DatasetError: the file has another layout.
    """
    return _mpii_people(_read_json(annotations), annotations)


#: Where a set's annotations may be: this project's own layout, COCO's, and MPII's in HRNet.
_ANNOTATIONS = (
    "{}.json",
    "annotations/{}.json",
    "annotations/person_keypoints_{}.json",
    "annot/{}.json",
)
#: Where its pictures may be.
_PICTURES = ("{}", "images/{}", "images")


def locate(data: Path, name: str) -> tuple[Path, list[Path]]:
    """A set's annotation file, and the folders and tar files of its pictures.

    Annotations are `NAME.json`, in the folder itself, in `annotations/` (there also
    `person_keypoints_NAME.json`, as COCO publishes them) or in `annot/` (as HRNet's authors
    publish MPII's); pictures lie in `NAME-*.tar`, `NAME/`, `images/NAME/` or `images/`. A name may
    lead into a subfolder: `mpii/train`.

    Raises:
        DatasetError: one of them is missing.
    """
    folder, stem = (data / name).parent, Path(name).name
    found = [path for each in _ANNOTATIONS if (path := folder / each.format(stem)).is_file()]
    if not found:
        known = sorted(path.stem for path in folder.glob("*.json"))
        raise DatasetError(f"{folder / stem}.json is missing; {folder} holds the sets {known}")
    sources = sorted(folder.glob(f"{stem}-*.tar"))
    sources += [path for each in _PICTURES if (path := folder / each.format(stem)).is_dir()]
    if not sources:
        raise DatasetError(
            f"no pictures for {name}: neither {folder / stem}/ nor {stem}-*.tar nor images/"
        )
    return found[0], sources


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON: {error}") from error


def _coco_pictures(content: Any, path: Path) -> tuple[list[Picture], Skeleton]:
    """The pictures of a COCO file with their annotations, and the skeleton of its category."""
    try:
        by_image: dict[int, list[dict[str, Any]]] = {}
        for image in content["images"]:
            by_image[image["id"]] = []
        for person in content["annotations"]:
            by_image[person["image_id"]].append(person)
        pictures = [
            Picture(image["file_name"], image["width"], image["height"], by_image[image["id"]])
            for image in content["images"]
        ]
        categories = content.get("categories", [])
        names = next((entry["keypoints"] for entry in categories if "keypoints" in entry), None)
    except KeyError as error:
        raise DatasetError(f"{path} is not in COCO layout: {error} is missing") from error
    except (TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is not in COCO layout: {error}") from error
    try:
        return pictures, COCO if names is None else skeleton_of(tuple(names))
    except SkeletonError as error:
        raise DatasetError(f"{path}: {error}") from error


def _coco_people(entries: list[Picture], skeleton: Skeleton, path: Path) -> list[Person]:
    people = []
    for picture in entries:
        for annotation in picture.people:
            where = f"{path}: annotation {annotation.get('id')}"
            values = annotation.get("keypoints") or []
            if not annotation.get("num_keypoints", len(values)):
                continue
            keypoints = _numbers(values, (skeleton.joints, 3), f"{where}: keypoints")
            x, y, width, height = _numbers(annotation.get("bbox"), (4,), f"{where}: bbox")
            if (keypoints[:, 2] > 0).any() and width > 0 and height > 0:
                box = np.array([x, y, x + width, y + height], np.float32)
                image_id = annotation["image_id"]
                people.append(
                    Person(picture.file_name, image_id, box, keypoints.astype(np.float32))
                )
    return people


def _mpii_people(content: list[Any], path: Path) -> list[Person]:
    """MPII's people by HRNet's json lists (HRNet, `lib/dataset/mpii.py`).

    `scale` is the person's size in units of 200 pixels. The centre moves down by 15 pixels of that
    scale and the crop is 1.25 times as large, so that no limb is cut off: the box is made such that
    a crop padded by 1.25 is just that. Coordinates count from 1, as in Matlab.
    """
    people = []
    numbers: dict[str, int] = {}
    for row, entry in enumerate(content):
        where = f"{path}: person {row}"
        if not isinstance(entry, dict):
            raise DatasetError(f"{where} is not in MPII's layout: {type(entry).__name__}")
        wanted = ("image", "center", "scale", "joints", "joints_vis")
        lacking = [key for key in wanted if key not in entry]
        if lacking:
            raise DatasetError(f"{where} is not in MPII's layout: {lacking[0]!r} is missing")
        joints = _numbers(entry["joints"], (MPII.joints, 2), f"{where}: joints")
        labelled = _numbers(entry["joints_vis"], (MPII.joints,), f"{where}: joints_vis") > 0
        centre = _numbers(entry["center"], (2,), f"{where}: center")
        scale = float(_numbers(entry["scale"], (), f"{where}: scale"))
        if not labelled.any() or scale <= 0:
            continue
        centre += np.array([-1, 15 * scale - 1])
        file_name = entry["image"]
        people.append(
            Person(
                file_name,
                numbers.setdefault(file_name, len(numbers)),
                np.concatenate((centre - 100 * scale, centre + 100 * scale)).astype(np.float32),
                np.concatenate((joints - 1, 2 * labelled[:, None]), 1).astype(np.float32),
            )
        )
    return people


def _numbers(value: Any, shape: tuple[int, ...], what: str) -> npt.NDArray[np.float64]:
    """An array of that shape, out of nested or flat lists."""
    try:
        array = np.array(value, np.float64).reshape(shape)
        if np.isfinite(array).all():
            return array
    except (TypeError, ValueError):
        pass
    wanted = f"{' x '.join(map(str, shape))} numbers" if shape else "one number"
    raise DatasetError(f"{what} must be {wanted}, not {str(value)[:60]}")


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
