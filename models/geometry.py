"""Boxes, crops and the affine maps between them.

A crop is what the network sees of one person: the box, widened to the input's aspect ratio and
padded, mapped to the input size without rotation. Both the service and the training go through
these few functions. Pixel centres lie at integer coordinates.

How a crop's pixels lie on its region, and a heatmap's pixels on the crop's, is a convention that
weights were trained with, and that no joint comes out right without:

* `affine`: a size is a number of pixels, and the region's size becomes the crop's. SimpleBaselines
  (`lib/dataset/coco.py`, `lib/utils/transforms.py`), HRNet, SimCC, mmpose, PCT.
* `udp`: a size of pixels is the steps between them, one less: "The Devil is in the Details: Delving
  into Unbiased Data Processing for Human Pose Estimation" (Huang et al., CVPR 2020, section 3).
* `darkpose`: so is the region's, and the width's factor is both axes' (DarkPose,
  `lib/utils/transforms.py`).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Mapping = Literal["affine", "udp", "darkpose"]


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


def crop_affines(
    boxes: Tensor,
    input_size: tuple[int, int],
    padding: float = 1.25,
    mapping: Mapping = "affine",
) -> Tensor:
    """The maps from image pixels to crop pixels, one a box.

    Args:
        boxes: `(P, 4)` as `x1, y1, x2, y2` in image pixels.
        input_size: width and height of the crop in pixels.
        padding: how much larger than the box the crop is.
        mapping: which convention; see this module's text.

    Returns:
        `(P, 2, 3)` float64: `crop = affine @ (x, y, 1)`; the box's centre lands in the middle.
    """
    centres, sizes = crop_regions(boxes, input_size, padding)
    return affines(centres, sizes, input_size, mapping=mapping)


def affines(
    centres: Tensor,
    sizes: Tensor,
    input_size: tuple[int, int],
    degrees: Tensor | None = None,
    mapping: Mapping = "affine",
) -> Tensor:
    """Maps that take each centre to the middle of the crop, and each size to the crop's.

    Args:
        centres: `(P, 2)` in image pixels.
        sizes: `(P, 2)` width and height of what the crop shows, in image pixels.
        input_size: width and height of the crop in pixels.
        degrees: `(P,)` by how much the picture is turned, clockwise as seen; none if left out.
        mapping: which convention. The middle is `width / 2, height / 2` of `affine`, and half a
            pixel less of the others.

    Returns:
        `(P, 2, 3)` float64.

    Raises:
        ValueError: there is no such mapping.
    """
    _check(mapping)
    sizes = sizes.double()
    angles = torch.zeros_like(sizes[..., 0])
    if degrees is not None:
        angles = degrees.double() * (math.pi / 180)
    cosine, sine = angles.cos(), angles.sin()
    turn = torch.stack((torch.stack((cosine, -sine), -1), torch.stack((sine, cosine), -1)), -2)
    extent = sizes.new_tensor(input_size) - int(mapping != "affine")
    if mapping == "darkpose":
        factors = (extent[0] / (sizes[..., :1] - 1).clamp_min(1e-6)).expand_as(sizes)
    else:
        factors = extent / sizes
    linear = factors[..., None] * turn
    shift = extent / 2 - (linear @ centres.double()[..., None])[..., 0]
    return torch.cat((linear, shift[..., None]), -1)


def map_grid(
    map_size: tuple[int, int], stride: float, mapping: Mapping
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where a heatmap's pixels lie in the input: at `step * pixel + origin`, on each axis.

    Args:
        map_size: width and height of the map.
        stride: input size by map size.
        mapping: which convention.

    Returns:
        The steps and the origins, of x and of y, in input pixels.

    Raises:
        ValueError: there is no such mapping.
    """
    _check(mapping)
    if mapping == "affine":
        return (stride, stride), (0.0, 0.0)
    across, down = ((stride * size - 1) / (size - 1) for size in map_size)
    if mapping == "udp":
        return (across, down), (0.0, 0.0)
    # The middles lie on each other.
    return (across, across), (0.0, (down - across) * (map_size[1] - 1) / 2)


def _check(mapping: Mapping) -> None:
    if mapping not in get_args(Mapping):
        raise ValueError(f"mapping must be one of {get_args(Mapping)}, not {mapping!r}")


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
