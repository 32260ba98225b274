"""Poses drawn onto their image."""

from __future__ import annotations

from typing import Literal, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.skeletons import COCO, Skeleton

Colour = tuple[int, int, int]

#: Okabe and Ito's blue and orange, which people of any colour vision can tell apart, and white.
_LEFT: Colour = (86, 180, 233)
_RIGHT: Colour = (230, 159, 0)
_CENTRE: Colour = (245, 245, 245)
#: Around everything, so that it stands out from any background.
_OUTLINE: Colour = (25, 25, 25)
#: A limb's width for each pixel of the person's size, and what that leads to at most.
_WIDTH, _WIDEST = 0.018, 16
#: Joints of lower scores are not shown, if nobody says otherwise.
MIN_JOINT_SCORE = 0.3
#: Fractional bits of a coordinate: OpenCV draws at sixteenths of a pixel.
_SHIFT = 4
#: Joints lie further out than this only by mistake, and OpenCV would overflow.
_FARTHEST = 2**20
_JPEG_QUALITY = 92
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def side_colour(skeleton: Skeleton, *joints: int) -> Colour:
    """The colour of the side that joints are on; eyes and nose together are on one side too."""
    sides = {skeleton.names[joint].partition("_")[0] for joint in joints} & {"left", "right"}
    if len(sides) != 1:
        return _CENTRE
    return _LEFT if "left" in sides else _RIGHT


def draw(
    image: npt.NDArray[np.uint8],
    keypoints: npt.NDArray[np.float32],
    boxes: npt.NDArray[np.float32] | None = None,
    scores: npt.NDArray[np.float32] | None = None,
    min_score: float = MIN_JOINT_SCORE,
    skeleton: Skeleton = COCO,
) -> npt.NDArray[np.uint8]:
    """Draw people: left limbs blue, right ones orange, what is in the middle white.

    Args:
        image: `(H, W, 3)` RGB; left as it is.
        keypoints: `(P, K, 3)`: x, y in image pixels and a score; the first person comes on top.
        boxes: `(P, 4)` as `x1, y1, x2, y2`, drawn if given.
        scores: `(P,)`, written at the boxes if given.
        min_score: joints of lower scores are not drawn, nor the limbs that end in them.
        skeleton: the K joints and how they are linked.

    Returns:
        `(H, W, 3)` RGB.
    """
    canvas = image.copy()
    for person in reversed(range(len(keypoints))):
        seen = keypoints[person, :, 2] >= min_score
        around = boxes[person] if boxes is not None else _extent(keypoints[person], seen)
        width = max(round(min(_WIDTH * float(np.sqrt(_area(around))), _WIDEST)), 1)
        if boxes is not None:
            _draw_box(canvas, around, None if scores is None else float(scores[person]), width)
        _draw_skeleton(canvas, skeleton, _fixed(keypoints[person, :, :2]), seen, width)
    return canvas


def encode(image: npt.NDArray[np.uint8], format: Literal["jpeg", "png"]) -> bytes:
    """Encode an `(H, W, 3)` RGB image."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if format == "jpeg" else []
    encoded = cv2.imencode(f".{format}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1]
    return encoded.tobytes()


def _draw_skeleton(
    canvas: npt.NDArray[np.uint8],
    skeleton: Skeleton,
    points: npt.NDArray[np.int32],
    seen: npt.NDArray[np.bool_],
    width: int,
) -> None:
    """Draw limbs over all their outlines, so that none of those crosses a limb; then joints."""
    limbs = [limb for limb in skeleton.limbs if seen[list(limb)].all()]
    edge = max(width // 3, 1)
    paths = [points[list(limb)] for limb in limbs]
    cv2.polylines(canvas, paths, False, _OUTLINE, width + 2 * edge, cv2.LINE_AA, _SHIFT)
    for limb, path in zip(limbs, paths, strict=True):
        own = side_colour(skeleton, *limb)
        cv2.polylines(canvas, [path], False, own, width, cv2.LINE_AA, _SHIFT)
    radius = round((0.8 * width + 0.5) * 2**_SHIFT)
    rim = max(edge / 2, 0.5)
    for joint in np.flatnonzero(seen).tolist():
        centre = points[joint].tolist()
        own = side_colour(skeleton, joint)
        for colour, wider in ((_OUTLINE, round(rim * 2**_SHIFT)), (own, 0)):
            cv2.circle(canvas, centre, radius + wider, colour, -1, cv2.LINE_AA, _SHIFT)


def _draw_box(
    canvas: npt.NDArray[np.uint8],
    box: npt.NDArray[np.float32],
    score: float | None,
    width: int,
) -> None:
    first, last = _fixed(box.reshape(2, 2)).tolist()
    line = max(width // 4, 1)
    cv2.rectangle(canvas, first, last, _OUTLINE, line + 2, cv2.LINE_AA, _SHIFT)
    cv2.rectangle(canvas, first, last, _CENTRE, line, cv2.LINE_AA, _SHIFT)
    if score is None:
        return
    text, scale = f"{score:.2f}", min(max(0.08 * width, 0.5), 1.0)
    (text_width, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
    # Within the picture, whose upper edge people often touch.
    x = int(np.clip(box[0] + 3, 2, max(canvas.shape[1] - text_width - 2, 2)))
    y = int(np.clip(box[1] - 4, height + 3, max(canvas.shape[0] - 3, height + 3)))
    cv2.rectangle(canvas, (x - 2, y + 3), (x + text_width + 1, y - height - 2), _OUTLINE, -1)
    cv2.putText(canvas, text, (x, y), _FONT, scale, _CENTRE, 1, cv2.LINE_AA)


def _fixed(points: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Coordinates as OpenCV's fixed point numbers."""
    inside = np.clip(points.astype(np.float64), -_FARTHEST, _FARTHEST)
    return cast("npt.NDArray[np.int32]", np.rint(inside * 2**_SHIFT).astype(np.int32))


def _extent(
    keypoints: npt.NDArray[np.float32], seen: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """The box around the joints that are seen; an empty one if none is."""
    if not seen.any():
        return np.zeros(4, np.float32)
    points = keypoints[seen, :2]
    return np.concatenate((points.min(0), points.max(0)))


def _area(box: npt.NDArray[np.float32]) -> float:
    return float(np.prod(np.maximum(box[2:] - box[:2], 0), dtype=np.float64))
