"""Photos to send: with a known number of people in them, or one's own."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from app import images
from app.errors import PosemuxError

#: Width and height of a composed photo, and what lies between its people.
_SIZE = (640, 480)
_GREY = 114
#: People stand in as few rows as so many in each of them allow, and take so much of their place.
_PEOPLE_A_ROW = 10
_FILL = 0.7
#: Two people of ultralytics' `bus.jpg` as `x1, y1, x2, y2`, whom detectors find wherever they are.
_CUT_OUTS = ((56, 389, 211, 881), (222, 400, 345, 866))


class PhotosError(ValueError):
    """There are no photos to send: the message says why."""


@dataclass(frozen=True, slots=True)
class Photos:
    """What is sent in turn, and its name in tables."""

    name: str
    files: tuple[Path, ...]
    """Encoded images."""

    def read(self) -> list[bytes]:
        """All files' contents."""
        return [file.read_bytes() for file in self.files]


def crowd(people: int) -> tuple[bytes, npt.NDArray[np.float32]]:
    """A photo of 640 x 480 pixels with so many people on plain grey: always the same one.

    Args:
        people: how many; from about 40 on they are too small to be found.

    Returns:
        A JPEG, and the people's boxes `(P, 4)` as `x1, y1, x2, y2`.

    Raises:
        PhotosError: ultralytics' sample photos are not there.
    """
    bus = cv2.imread(str(_sample("bus.jpg")))
    if bus is None:
        raise PhotosError("ultralytics' sample photo bus.jpg cannot be read")
    width, height = _SIZE
    photo = np.full((height, width, 3), _GREY, np.uint8)
    rows = -(-people // _PEOPLE_A_ROW)
    columns = -(-people // rows)
    place = np.array([width / columns, height / rows])
    boxes = np.empty((people, 4), np.float32)
    for number in range(people):
        x1, y1, x2, y2 = _CUT_OUTS[number % len(_CUT_OUTS)]
        scale = (_FILL * place / (x2 - x1, y2 - y1)).min()
        person = cv2.resize(
            bus[y1:y2, x1:x2], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
        )
        size = np.array(person.shape[1::-1])
        left, top = (place * (number % columns, number // columns) + (place - size) / 2).astype(int)
        photo[top : top + size[1], left : left + size[0]] = person
        boxes[number] = (left, top, left + size[0], top + size[1])
    return cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes(), boxes


def write_crowds(counts: tuple[int, ...], folder: Path) -> list[Photos]:
    """Compose a photo for each number of people, and write them."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for people in counts:
        file = folder / f"{people}-people.jpg"
        file.write_bytes(crowd(people)[0])
        written.append(Photos("1 person" if people == 1 else f"{people} people", (file,)))
    return written


def own(folder: Path) -> Photos:
    """All images of a folder, whatever else is in it.

    Raises:
        PhotosError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise PhotosError(f"--images {folder}: no such folder")
    found = tuple(path for path in sorted(folder.iterdir()) if path.is_file() and _is_image(path))
    if not found:
        raise PhotosError(f"--images {folder}: no image in it; accepted are {images.ACCEPTED}")
    return Photos(folder.resolve().name, found)


def _is_image(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(16)
    try:
        images.sniff(head)
    except PosemuxError:
        return False
    return True


def _sample(name: str) -> Path:
    """A photo that comes with ultralytics, which need not be imported for it."""
    package = find_spec("ultralytics")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "assets" / name
