"""Clips with people who really move, made from a photo: small, and never kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from app.clips import ClipWriter
from tests.photos import BUS

#: The two men of the photo whom any detector finds, as `x1, y1, x2, y2`.
MEN = np.array([[52.0, 396, 246, 902], [222, 405, 345, 860]])
FPS = 30.0


def pan(
    frames: int, size: tuple[int, int] = (320, 240)
) -> Iterator[tuple[npt.NDArray, npt.NDArray]]:
    """A camera that sways over the photo until one of the men is out of sight, and back.

    Yields:
        Each frame, RGB, and where the men are in it, `(2, 4)`.
    """
    photo = cv2.imread(str(BUS), cv2.IMREAD_COLOR_RGB)
    for number in range(frames):
        turn = 2 * np.pi * number / (frames - 1)
        centre = np.array([430 - 150 * np.cos(turn), 640 + 20 * np.sin(2 * turn)])
        scale = size[0] / 640
        affine = np.column_stack((scale * np.eye(2), np.array(size) / 2 - scale * centre))
        frame = cv2.warpAffine(photo, affine, size, flags=cv2.INTER_AREA)
        yield frame, (scale * MEN.reshape(-1, 2) + affine[:, 2]).reshape(-1, 4)


def write(path: Path, frames: Iterator[npt.NDArray], fps: float = FPS) -> None:
    with ClipWriter(path, fps) as clip:
        for number, frame in enumerate(frames):
            clip.write(frame, number / fps)
