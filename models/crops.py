"""The crops that pose networks see of people, cut out of images: tensors in, tensors out.

Every crop of every image comes out of one gather over one byte buffer, so that people of images of
different sizes share a batch. Sampling is exact bilinear with black beyond the border, before
normalisation: what `cv2.warpAffine` does since OpenCV 5 (up to 4.x it rounds source positions to
1/32 pixel). A person much larger than the crop aliases, as with everybody who warps this way, the
networks' training included.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from models.geometry import invert_affines

RGB = tuple[float, float, float]


def cut_out(
    pixels: Tensor,
    heights: Tensor,
    widths: Tensor,
    starts: Tensor,
    affines: Tensor,
    size: tuple[int, int],
    mean: RGB,
    std: RGB,
    bgr: bool = False,
) -> Tensor:
    """Cut out and normalise every person's crop.

    Args:
        pixels: `(pixels of all images, 3)` uint8, image after image, row by row.
        heights: `(P,)` int64, the height of the image that each person is in.
        widths: `(P,)` int64, its width.
        starts: `(P,)` int64, its first row in `pixels`.
        affines: `(P, 2, 3)` from image to crop pixels, without rotation or shear.
        size: width and height of a crop.
        mean: of each of the crops' channels, for values in [0, 1].
        std: of each of the crops' channels, for values in [0, 1].
        bgr: whether blue is a crop's first channel; images are RGB.

    Returns:
        `(P, 3, height, width)` float32, `(pixel / 255 - mean) / std`.
    """
    # Not len(), which would fix the number of people when this is exported.
    people, (width, height) = affines.shape[0], size
    device = pixels.device
    inverse = invert_affines(affines)

    # A crop is not turned, so a column of it lies at one x and a row at one y: positions and
    # weights are vectors, and only the pixels themselves are looked up in two dimensions.
    x = inverse[:, 0, :1] * torch.arange(width, device=device) + inverse[:, 0, 2:]
    y = inverse[:, 1, 1:2] * torch.arange(height, device=device) + inverse[:, 1, 2:]
    crops = _blend(pixels, widths, starts, _neighbours(x, widths), _neighbours(y, heights))
    if bgr:
        crops = crops.view(people, height, width, 3).flip(-1).view(people, height, -1)
    crops = crops.sub_(_grey_levels(mean, width, device)).div_(_grey_levels(std, width, device))
    return crops.view(people, height, width, 3).permute(0, 3, 1, 2)


def letterbox(
    pixels: Tensor,
    heights: Tensor,
    widths: Tensor,
    starts: Tensor,
    frames: Tensor,
    size: tuple[int, int],
    grey: int,
) -> Tensor:
    """Images resized into one part each of equally large grey canvases, exactly bilinear.

    What `cv2.resize` and PyTorch's `interpolate` without antialiasing do, for images of any sizes
    at once; both round to whole grey levels where this does not.

    Args:
        pixels: `(pixels of all images, 3)` uint8, image after image, row by row.
        heights: `(N,)` int64, each image's height.
        widths: `(N,)` int64, its width.
        starts: `(N,)` int64, its first row in `pixels`.
        frames: `(N, 4)` int64, the part of the canvas that it fills: left, top, width, height.
        size: width and height of a canvas.
        grey: what is around that part.

    Returns:
        `(N, 3, height, width)` float32, grey levels of 0 to 255.
    """
    left, top, across, down = frames.unbind(-1)
    columns, x = _stretched(left, across, widths, size[0])
    rows, y = _stretched(top, down, heights, size[1])
    images = _blend(pixels, widths, starts, _neighbours(x, widths), _neighbours(y, heights))
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    canvases = torch.where(inside, images.view(len(frames), size[1], size[0], 3), grey)
    return canvases.permute(0, 3, 1, 2)


def _stretched(first: Tensor, count: Tensor, limits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Of `size` canvas pixels along one axis, which show an image `(N,)`, and which part of it.

    Args:
        first: `(N,)` the first of them.
        count: `(N,)` how many they are.
        limits: `(N,)` pixels of the image along that axis.
        size: pixels of the canvas along that axis.

    Returns:
        `(N, size)` bool, and positions `(N, size)` float64 in image pixels, none beyond its edge.
    """
    index = torch.arange(size, device=first.device) - first[:, None]
    # Edges lie on edges: half a pixel before the first centre.
    positions = (index + 0.5) * (limits.double() / count)[:, None] - 0.5
    inside = (index >= 0) & (index < count[:, None])
    return inside, positions.clamp_min(0).minimum((limits - 1)[:, None].double())


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
