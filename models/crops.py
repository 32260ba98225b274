"""The crops that pose networks see of people, cut out of images: tensors in, tensors out.

Every crop of every image comes out of one gather over one byte buffer, so that people of images of
different sizes share a batch. Sampling is exact bilinear with black beyond the border, before
normalisation: what `cv2.warpAffine` does since OpenCV 5 (up to 4.x it rounds source positions to
1/32 pixel). A person much larger than the crop aliases, as with everybody who warps this way, the
networks' training included.
"""

from __future__ import annotations

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
    (left, right), across = _neighbours(x, widths)
    (above, below), down = _neighbours(y, heights)
    # Colours stay interleaved, as (P, height, width * 3), while there is arithmetic to do: long
    # rows are what vectorised loops want.
    across = across.repeat_interleave(3, -1)[:, :, None]

    def blend(rows: Tensor) -> Tensor:
        first = (starts[:, None] + rows * widths[:, None])[:, :, None]

        def look_up(columns: Tensor) -> Tensor:
            found = pixels.index_select(0, (first + columns[:, None]).flatten())
            return found.view(people, height, width * 3).float()

        return look_up(left).mul_(across[0]).add_(look_up(right).mul_(across[1]))

    crops = blend(above).mul_(down[0, ..., None]).add_(blend(below).mul_(down[1, ..., None]))
    if bgr:
        crops = crops.view(people, height, width, 3).flip(-1).view(people, height, -1)
    scale = torch.tensor(std, device=device).mul_(255).repeat(width)
    shift = torch.tensor(mean, device=device).mul_(255).repeat(width)
    return crops.sub_(shift).div_(scale).view(people, height, width, 3).permute(0, 3, 1, 2)


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
