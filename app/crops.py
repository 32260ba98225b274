"""Images on the device, and the crops that pose networks see of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.crops import CropForm, cut_out, warp_out


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Bring an array to the device without waiting for what the device is doing."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        # Only from page-locked memory do copies queue up; from elsewhere each waits for all before.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True, eq=False)
class ImageBatch:
    """Images of any sizes, one after another in a buffer on the device."""

    pixels: Tensor
    """`(pixels of all images, 3)` uint8, row by row."""
    layout: Tensor
    """`(N, 3)` int64 on the device: each image's height, width and first row in `pixels`."""
    shapes: tuple[tuple[int, int], ...]
    """Height and width of each image."""
    starts: tuple[int, ...]
    """Each image's first row in `pixels`."""

    @classmethod
    def upload(cls, images: Sequence[npt.NDArray[np.uint8]], device: torch.device) -> ImageBatch:
        """Bring `(H, W, 3)` uint8 images to the device in one transfer, and their layout."""
        shapes = tuple((image.shape[0], image.shape[1]) for image in images)
        ends = np.cumsum([height * width for height, width in shapes]).tolist()
        starts = (0, *ends[:-1])
        # Page-locked memory lets the transfer go at the bus's full speed.
        host = torch.empty((ends[-1], 3), dtype=torch.uint8, pin_memory=device.type == "cuda")
        np.concatenate([image.reshape(-1, 3) for image in images], out=host.numpy())
        layout = np.column_stack((shapes, starts)).astype(np.int64)
        pixels = host.to(device, non_blocking=True)
        return cls(pixels, to_device(layout, device), shapes, starts)

    def __getitem__(self, index: int) -> Tensor:
        """One image as a `(H, W, 3)` uint8 view into the buffer."""
        height, width = self.shapes[index]
        start = self.starts[index]
        return self.pixels[start : start + height * width].view(height, width, 3)


def crop(
    images: ImageBatch,
    owners: Tensor,
    affines: Tensor,
    form: CropForm,
) -> Tensor:
    """Cut out and normalise every person's crop.

    Args:
        images: the images.
        owners: `(P,)` int64, which image each person is in.
        affines: `(P, 2, 3)` from image to crop pixels, without rotation or shear.
        form: what the crops are to be like.

    Returns:
        `(P, 3, height, width)` float32, `(pixel / 255 - mean) / std` of the form.
    """
    device = images.pixels.device
    if device.type == "cpu":
        on_host = [images[index].numpy() for index in range(len(images.shapes))]
        return warp_out(on_host, owners, affines, form)
    heights, widths, starts = images.layout[owners.to(device)].unbind(-1)
    affines = affines.to(device)
    return cut_out(images.pixels, heights, widths, starts, affines, form)
