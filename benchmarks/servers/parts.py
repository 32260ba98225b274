"""What all servers share: the models as ONNX, run the way rtmlib and mmdeploy run them.

`benchmarks/peers.py` writes the models into the folder `PEERS_MODELS`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime

# Before ultralytics, which would tell torch to use one thread.
import torch  # noqa: F401
from ultralytics import YOLO

MODELS = Path(os.environ["PEERS_MODELS"])

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def decode(encoded: bytes) -> Image:
    """An image as blue, green, red, which OpenCV and ultralytics share."""
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)


class Detector:
    """The bundled person detector through ultralytics' own prediction, which runs its ONNX."""

    def __init__(self) -> None:
        self.facts = json.loads((MODELS / "detector.json").read_text())
        self.model = YOLO(MODELS / "detector.onnx", task="detect")

    def __call__(self, images: Sequence[Image]) -> list[Floats]:
        """Boxes `(P, 4)` as `x1, y1, x2, y2` of each image."""
        found = self.model(list(images), verbose=False, **self.facts)
        return [result.boxes.xyxy.numpy() for result in found]


class Estimator:
    """The bundled SimCC network."""

    def __init__(self) -> None:
        self.facts = json.loads((MODELS / "pose.json").read_text())
        self.session = onnxruntime.InferenceSession(
            MODELS / "pose.onnx", providers=["CPUExecutionProvider"]
        )
        self.mean, self.std = (np.array(self.facts[key], np.float32) for key in ("mean", "std"))

    def one_by_one(self, image: Image, boxes: Floats) -> Floats:
        """Keypoints `(P, K, 3)`: a forward pass for each person."""
        people = [self.together([image], [box[None]])[0] for box in boxes]
        return np.concatenate(people) if people else np.empty((0, 17, 3), np.float32)

    def together(self, images: Sequence[Image], boxes: Sequence[Floats]) -> list[Floats]:
        """Keypoints `(P, K, 3)` of each image: one forward pass for the people of all."""
        owners = [image for image, own in zip(images, boxes, strict=True) for _ in own]
        if not owners:
            return [np.empty((0, 17, 3), np.float32) for _ in images]
        every = np.concatenate(boxes)
        maps = [self._affine(box) for box in every]
        crops = [self._crop(image, own) for image, own in zip(owners, maps, strict=True)]
        x, y = self.session.run(None, {"crops": np.stack(crops)})
        keypoints = np.stack(
            (
                x.argmax(-1) / self.facts["k"],
                y.argmax(-1) / self.facts["k"],
                np.minimum(x.max(-1), y.max(-1)),
            ),
            -1,
        ).astype(np.float32)
        for number, matrix in enumerate(maps):
            scale, shift = matrix[0, 0], matrix[:, 2]
            keypoints[number, :, :2] = (keypoints[number, :, :2] - shift) / scale
        return np.split(keypoints, np.cumsum([len(own) for own in boxes])[:-1])

    def _affine(self, box: Floats) -> npt.NDArray[np.float64]:
        width, height = self.facts["input_size"]
        x1, y1, x2, y2 = box.astype(np.float64)
        across = max(x2 - x1, (y2 - y1) * width / height) * self.facts["padding"]
        scale = width / across
        shift = np.array([width, height]) / 2 - scale * np.array([x1 + x2, y1 + y2]) / 2
        return np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])

    def _crop(self, image: Image, matrix: npt.NDArray[np.float64]) -> Floats:
        crop = cv2.warpAffine(image, matrix, self.facts["input_size"], flags=cv2.INTER_LINEAR)
        crop = (crop[..., ::-1].astype(np.float32) / 255 - self.mean) / self.std
        return np.ascontiguousarray(crop.transpose(2, 0, 1), np.float32)


def given(boxes: str | list[list[float]] | None) -> Floats | None:
    """One's own boxes, where a request brings some."""
    if boxes is None:
        return None
    corners = json.loads(boxes) if isinstance(boxes, str) else boxes
    return np.array(corners, np.float32).reshape(-1, 4)


def estimate_batch(
    detector: Detector, estimator: Estimator, photos: Sequence[tuple[Image, Floats | None]]
) -> list[dict[str, Any]]:
    """Answers for several images: one detector batch, one batch of all of their people."""
    images = [image for image, _ in photos]
    boxes = [own for _, own in photos]
    searched = [index for index, own in enumerate(boxes) if own is None]
    if searched:
        found = detector([images[index] for index in searched])
        for index, people in zip(searched, found, strict=True):
            boxes[index] = people
    keypoints = estimator.together(images, boxes)
    return [answer(*pair) for pair in zip(boxes, keypoints, strict=True)]


def answer(boxes: Floats, keypoints: Floats) -> dict[str, Any]:
    """A body like posemux's."""
    joints = keypoints.reshape(len(keypoints), 3 * keypoints.shape[1])
    return {
        "predictions": [
            {"bbox": box, "keypoints": row}
            for box, row in zip(
                boxes.astype(np.float64).round(2).tolist(),
                joints.astype(np.float64).round(2).tolist(),
                strict=True,
            )
        ]
    }
