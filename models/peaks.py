"""Where something is largest: what every decoding begins with, and most of its work."""

from __future__ import annotations

import cv2
import torch
from torch import Tensor

_KNOWN_TO_NUMPY = (torch.float32, torch.float64)


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
    if not (logits.is_cpu and logits.dtype == torch.float32) or logits.requires_grad:
        return first_peak(logits.softmax(-1))
    if torch.compiler.is_exporting():
        return first_peak(logits.softmax(-1))
    # Only the peak's probability is wanted, which is one by the sum of all powers: nothing is
    # divided, and OpenCV's exponential takes a fifth of the time of torch's.
    rows = logits.reshape(-1, logits.shape[-1])
    powers = rows - rows.amax(-1, keepdim=True)
    cv2.exp(powers.numpy(), powers.numpy())
    index = torch.from_numpy(powers.numpy().argmax(-1))
    peaks = powers.sum(-1).reciprocal_()
    return peaks.view(logits.shape[:-1]), index.view(logits.shape[:-1])
