"""Where something is largest: what every decoding begins with, and most of its work."""

from __future__ import annotations

import cv2
import torch
from torch import Tensor

_KNOWN_TO_NUMPY = (torch.float32, torch.float64)
#: Sums of powers from here to its inverse are far from the ends of float32, and so are their terms
#: that count. A softmax keeps them in the middle by subtracting the largest logit first.
_LEAST = 1e-30


def first_peak(values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value along the last axis, and where it is: the first place of several.

    Args:
        values: `(..., n)`, any float type.

    Returns:
        Values `(...)` and indices `(...)` int64. Where a value is not a number, it is the largest.
    """
    if values.is_cpu and values.dtype in _KNOWN_TO_NUMPY and not torch.compiler.is_exporting():
        # torch looks at one value at a time, numpy at sixteen: a third of the time on heatmaps, a
        # seventh on SimCC's vectors.
        index = torch.from_numpy(values.detach().numpy().argmax(-1))
        return values.gather(-1, index[..., None])[..., 0], index
    return values.max(-1)


def softmax_peak(logits: Tensor) -> tuple[Tensor, Tensor]:
    """A softmax's largest probability along the last axis, and where it is: the first of several.

    Args:
        logits: `(..., n)`, any float type.

    Returns:
        Probabilities `(...)` and indices `(...)` int64. Where a logit is not a number, neither is
        the probability.
    """
    if (
        logits.is_cpu
        and logits.dtype == torch.float32
        and logits.numel()
        and not (logits.requires_grad or torch.compiler.is_exporting())
    ):
        # Of all that a softmax divides only the largest is wanted, and OpenCV's exponential takes a
        # fifth of the time of torch's.
        rows = logits.reshape(-1, logits.shape[-1])
        powers = torch.from_numpy(cv2.exp(rows.numpy()))
        sums = powers.sum(-1)
        if sums.min() > _LEAST and sums.max() < 1 / _LEAST:
            largest, index = first_peak(powers)
            return (largest / sums).view(logits.shape[:-1]), index.view(logits.shape[:-1])
    return first_peak(logits.softmax(-1))
