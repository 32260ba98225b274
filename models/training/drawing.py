"""Pictures of what a network is taught and what it answers."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: The height to which crops are enlarged.
_HEIGHT = 256
#: How far distributions reach into the picture.
_REACH = 48
_TARGET, _PREDICTION, _DISTRIBUTION = (80, 255, 80), (255, 60, 60), (255, 220, 0)

Image = npt.NDArray[np.uint8]


def people_grid(
    crops: Tensor, targets: Tensor, labelled: Tensor, decoded: Tensor, raw: Any
) -> Image:
    """A row of people: their labelled joints in green, each linked to its prediction in red.

    Below them are the sums of heatmaps, or along the edges SimCC's two distributions, each bin with
    its likeliest joint's probability. Tokens cannot be drawn.

    Args:
        crops: `(N, 3, H, W)`, uint8 RGB.
        targets: `(N, K, 2)` in crop pixels.
        labelled: `(N, K)`, above 0 where the joint is labelled.
        decoded: `(N, K, 2 or more)` in crop pixels.
        raw: what the network said of them: heatmaps `(N, K, h, w)`, SimCC's logits `(N, K, bins)`
            of x and y, or token logits `(N, M, V)`.

    Returns:
        RGB `(height, width, 3)`.
    """
    zoom = max(1, round(_HEIGHT / crops.shape[-2]))
    columns = []
    for row, crop in enumerate(crops.permute(0, 2, 3, 1).contiguous().numpy()):
        plain = np.repeat(np.repeat(crop, zoom, 0), zoom, 1)
        drawn = plain.copy()
        if isinstance(raw, tuple):
            x, y = (logits[row].float().softmax(-1).amax(0).numpy() for logits in raw)
            _draw_distribution(drawn, x)
            _draw_distribution(drawn.swapaxes(0, 1), y)
        for target, known, answer in zip(targets[row], labelled[row], decoded[row], strict=True):
            start, end = ((point[:2] * zoom).round().int().tolist() for point in (target, answer))
            if known > 0:
                cv2.line(drawn, start, end, _TARGET, 1)
                cv2.circle(drawn, start, 3, _TARGET, -1)
                cv2.circle(drawn, end, 3, _PREDICTION, -1)
        shown = [drawn]
        if isinstance(raw, Tensor) and raw.ndim == 4:
            shown.append(_blend(plain, raw[row].float().sum(0)))
        columns.append(np.concatenate(shown))
    return np.concatenate(columns, 1)


def _draw_distribution(
    image: npt.NDArray[np.uint8], probabilities: npt.NDArray[np.float32]
) -> None:
    """Bars from the last row upwards, the highest `_REACH` pixels high, in place."""
    length = image.shape[1]
    places = (np.arange(length) + 0.5) * len(probabilities) / length
    bars = probabilities[places.astype(int)] / max(float(probabilities.max()), 1e-12) * _REACH
    image[np.arange(len(image))[:, None] >= len(image) - bars] = _DISTRIBUTION


def _blend(image: Image, heatmap: Tensor) -> Image:
    scaled = (heatmap.clamp(0, 1) * 255).to(torch.uint8).numpy()
    enlarged = cv2.resize(scaled, (image.shape[1], image.shape[0]))
    coloured = cv2.applyColorMap(enlarged, cv2.COLORMAP_JET)[..., ::-1]
    return (image * 0.5 + coloured * 0.5).astype(np.uint8)
