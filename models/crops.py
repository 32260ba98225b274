"""The crops that pose networks see of people, cut out of images.

Sampling is exact bilinear with black beyond the border, before normalisation: what `cv2.warpAffine`
does since OpenCV 5 (up to 4.x it rounds source positions to 1/32 pixel). A person much larger than
the crop aliases, as with everybody who warps this way, the networks' training included.

There are two ways to the same crops. `cut_out` is tensors in, tensors out: every crop of every
image comes out of one gather over one byte buffer, which is what an accelerator wants, and what can
be exported. On a CPU `warp_out` takes a quarter to a half of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.geometry import invert_affines

RGB = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class CropForm:
    """What a pose network's crops are like."""

    size: tuple[int, int]
    """Width and height in pixels."""
    mean: RGB
    """Of each of the crops' channels, for values in [0, 1]."""
    std: RGB
    """Of each of the crops' channels, for values in [0, 1]."""
    bgr: bool = False
    """Whether blue is the first channel; images are RGB."""


#: Pixels of a crop's region above which it stays in bytes: to turn a region into numbers would take
#: longer than to warp it.
_LARGE_REGION = 2**20


def cut_out(
    pixels: Tensor,
    heights: Tensor,
    widths: Tensor,
    starts: Tensor,
    affines: Tensor,
    form: CropForm,
) -> Tensor:
    """Cut out and normalise every person's crop.

    Args:
        pixels: `(pixels of all images, 3)` uint8, image after image, row by row.
        heights: `(P,)` int64, the height of the image that each person is in.
        widths: `(P,)` int64, its width.
        starts: `(P,)` int64, its first row in `pixels`.
        affines: `(P, 2, 3)` from image to crop pixels, without rotation or shear.
        form: what the crops are to be like.

    Returns:
        `(P, 3, height, width)` float32, `(pixel / 255 - mean) / std` of the form.
    """
    # Not len(), which would fix the number of people when this is exported.
    people, (width, height) = affines.shape[0], form.size
    device = pixels.device
    inverse = invert_affines(affines)

    # A crop is not turned, so a column of it lies at one x and a row at one y: positions and
    # weights are vectors, and only the pixels themselves are looked up in two dimensions.
    x = inverse[:, 0, :1] * torch.arange(width, device=device) + inverse[:, 0, 2:]
    y = inverse[:, 1, 1:2] * torch.arange(height, device=device) + inverse[:, 1, 2:]
    crops = _blend(pixels, widths, starts, _neighbours(x, widths), _neighbours(y, heights))
    if form.bgr:
        crops = crops.view(people, height, width, 3).flip(-1).view(people, height, -1)
    mean, std = (_grey_levels(colour, width, device) for colour in (form.mean, form.std))
    crops = crops.sub_(mean).div_(std)
    return crops.view(people, height, width, 3).permute(0, 3, 1, 2)


def _blend(
    pixels: Tensor,
    widths: Tensor,
    starts: Tensor,
    columns: tuple[Tensor, Tensor],
    rows: tuple[Tensor, Tensor],
) -> Tensor:
    """Weighted sums of four pixels each: `(P, rows, columns * 3)` float32 from `_neighbours`."""
    (left, right), across = columns
    (above, below), down = rows
    shape = (above.shape[0], above.shape[1], 3 * left.shape[1])
    # Colours stay interleaved, as (P, height, width * 3), while there is arithmetic to do: long
    # rows are what vectorised loops want.
    across = across.repeat_interleave(3, -1)[:, :, None]

    def blend(lines: Tensor) -> Tensor:
        first = (starts[:, None] + lines * widths[:, None])[:, :, None]

        def look_up(places: Tensor) -> Tensor:
            found = pixels.index_select(0, (first + places[:, None]).flatten())
            return found.view(shape).float()

        return look_up(left).mul_(across[0]).add_(look_up(right).mul_(across[1]))

    return blend(above).mul_(down[0, ..., None]).add_(blend(below).mul_(down[1, ..., None]))


@lru_cache
@torch.inference_mode(False)  # or nothing that is kept could be used in training
def _grey_levels(colour: RGB, count: int, device: torch.device) -> Tensor:
    """A colour in [0, 1] as grey levels, `count` times over: kept, since bringing it takes long."""
    return torch.tensor(colour, device=device).mul_(255).repeat(count)


def _neighbours(positions: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """The two pixels around each position, and what each contributes.

    Args:
        positions: `(P, n)` float64 along one axis.
        limits: `(P,)` pixels along that axis.

    Returns:
        Indices `(2, P, n)` int64, all of them inside of the image, and weights `(2, P, n)` float32,
        0 for a pixel that is not.
    """
    floor = positions.floor()
    fraction = positions - floor
    indices = torch.stack((floor, floor + 1))
    last = (limits - 1).to(positions)[:, None]
    inside = (indices >= 0) & (indices <= last)
    weights = torch.stack((1 - fraction, fraction)) * inside
    return indices.clamp_min(0).minimum(last).long(), weights.float()


def warp_out(
    images: Sequence[npt.NDArray[np.uint8]],
    owners: Tensor,
    affines: Tensor,
    form: CropForm,
) -> Tensor:
    """Cut out and normalise every person's crop, on the host.

    As `cut_out`, but for regions of more than a million pixels: their crops are rounded to whole
    grey levels, as those of all who warp bytes.

    Args:
        images: `(H, W, 3)` each.
        owners: `(P,)` int64, which image each person is in.
        affines: `(P, 2, 3)` from image to crop pixels, without rotation or shear.
        form: what the crops are to be like.

    Returns:
        `(P, 3, height, width)` float32, `(pixel / 255 - mean) / std` of the form.
    """
    width, height = form.size
    matrices = affines.numpy(force=True).copy()
    steps = 1 / matrices[:, (0, 1), (0, 1)]
    first = -matrices[:, :, 2] * steps
    last = first + steps * (width - 1, height - 1)
    limits = np.array([(image.shape[1], image.shape[0]) for image in images])[owners.numpy()]
    # One pixel at least, whatever the crop sees of its image.
    begins = np.clip(np.floor(first), 0, limits - 1).astype(int)
    ends = np.clip(np.floor(last) + 2, begins + 1, limits).astype(int)
    matrices[:, :, 2] += begins / steps

    crops = torch.empty(len(matrices), height, width, 3)
    factor, offset = _normalisation(form)
    # One person at a time: OpenCV warps one picture a call, and its loop is the quickest there is.
    regions = zip(owners.tolist(), matrices, begins.tolist(), ends.tolist(), strict=True)
    for crop, (owner, matrix, (left, top), (right, bottom)) in zip(crops, regions, strict=True):
        region = images[owner][top:bottom, left:right]
        if form.bgr:
            region = cv2.cvtColor(region, cv2.COLOR_RGB2BGR)
        if (right - left) * (bottom - top) <= _LARGE_REGION:
            region = region.astype(np.float32)
        # In place, unless the region is in bytes.
        warped = torch.from_numpy(cv2.warpAffine(region, matrix, form.size, dst=crop.numpy()))
        rows = crop.view(height, -1)
        torch.addcmul(offset, warped.view(height, -1), factor, out=rows)
    return crops.permute(0, 3, 1, 2)


@lru_cache
@torch.inference_mode(False)  # or nothing that is kept could be used in training
def _normalisation(form: CropForm) -> tuple[Tensor, Tensor]:
    """What a row of pixels is multiplied with, and what is added then: `(width * 3,)` each."""
    spread = 255 * np.array(form.std)
    factor, offset = 1 / spread, -255 * np.array(form.mean) / spread
    return tuple(  # type: ignore[return-value]
        torch.from_numpy(np.tile(row, form.size[0]).astype(np.float32)) for row in (factor, offset)
    )
