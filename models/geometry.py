"""Boxes, crops and the affine maps between them.

A crop is what the network sees of one person: the box, widened to the input's aspect ratio and
padded, mapped to the input size without rotation. Both the service and the training go through
these few functions. Pixel centres lie at integer coordinates.

Source: SimpleBaselines `lib/dataset/coco.py` and `lib/utils/transforms.py`, the non-UDP convention
that HRNet, SimCC and mmpose share.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def crop_regions(
    boxes: Tensor, input_size: tuple[int, int], padding: float
) -> tuple[Tensor, Tensor]:
    """Centre and padded size of each box's crop, with the aspect ratio of the network's input.

    Args:
        boxes: `(..., 4)` as `x1, y1, x2, y2` in image pixels.
        input_size: width and height of the network's input in pixels.
        padding: how much larger than the box the crop is; 1.25 in most of the literature.

    Returns:
        Centres `(..., 2)` and sizes `(..., 2)` as width and height, in image pixels, float64.
    """
    boxes = boxes.double()
    size = (boxes[..., 2:] - boxes[..., :2]).clamp_min(1e-6)
    aspect = input_size[0] / input_size[1]
    width = torch.maximum(size[..., 0], size[..., 1] * aspect) * padding
    return (boxes[..., :2] + boxes[..., 2:]) / 2, torch.stack((width, width / aspect), -1)


def crop_affines(boxes: Tensor, input_size: tuple[int, int], padding: float = 1.25) -> Tensor:
    """The maps from image pixels to crop pixels, one a box.

    Args:
        boxes: `(P, 4)` as `x1, y1, x2, y2` in image pixels.
        input_size: width and height of the crop in pixels.
        padding: how much larger than the box the crop is.

    Returns:
        `(P, 2, 3)` float64: `crop = affine @ (x, y, 1)`; the box's centre lands on the crop's
        `(width / 2, height / 2)`.
    """
    centres, sizes = crop_regions(boxes, input_size, padding)
    return affines(centres, input_size[0] / sizes[..., 0], input_size)


def affines(
    centres: Tensor, scales: Tensor, input_size: tuple[int, int], degrees: Tensor | None = None
) -> Tensor:
    """Similarity maps that take each centre to the middle of the crop.

    Args:
        centres: `(P, 2)` in image pixels.
        scales: `(P,)` crop pixels for each image pixel.
        input_size: width and height of the crop in pixels.
        degrees: `(P,)` by how much the picture is turned, clockwise as seen; none if left out.

    Returns:
        `(P, 2, 3)` float64.
    """
    angles = torch.zeros_like(scales) if degrees is None else degrees.double() * (math.pi / 180)
    cosine, sine = angles.cos() * scales, angles.sin() * scales
    linear = torch.stack((torch.stack((cosine, -sine), -1), torch.stack((sine, cosine), -1)), -2)
    middle = centres.new_tensor(input_size, dtype=torch.float64) / 2
    shift = middle - (linear @ centres.double()[..., None])[..., 0]
    return torch.cat((linear, shift[..., None]), -1)


def invert_affines(matrices: Tensor) -> Tensor:
    """The inverse maps of `(P, 2, 3)` affine matrices, same shape and type."""
    # Written out: ONNX has no operator for it.
    (a, b), (c, d) = (row.unbind(-1) for row in matrices[..., :2].unbind(-2))
    adjugate = torch.stack((torch.stack((d, -b), -1), torch.stack((-c, a), -1)), -2)
    linear = adjugate / (a * d - b * c)[..., None, None]
    return torch.cat((linear, -linear @ matrices[..., 2:]), -1)


def apply_affines(matrices: Tensor, points: Tensor) -> Tensor:
    """Map each person's points.

    Args:
        matrices: `(P, 2, 3)`.
        points: `(P, K, 2)`.

    Returns:
        `(P, K, 2)` in the matrices' type.
    """
    return points.to(matrices) @ matrices[..., :2].mT + matrices[..., 2][..., None, :]
