"""The authors' own arithmetic from raw outputs to keypoints, quirk by quirk.

posemux decodes in its own way: without bias, mirror images merged as coordinates, scores in [0, 1].
Published figures were measured otherwise, and every repository differs a little from the next. This
is what each does after its network, so that a published figure can be measured again:

| rule | of | mirror image | no peak | between pixels | score |
|---|---|---|---|---|---|
| `hrnet` | HRNet, SimpleBaselines | heatmaps, shifted | 0 | quarter | peak |
| `darkpose` | DarkPose, TokenPose | heatmaps | 0 | Taylor | peak |
| `mmpose-0.x` | mmpose 0.x, PCT's heatmaps | heatmaps, shifted | -1 | quarter | peak |
| `mmpose-0.x-dark` | mmpose 0.x | heatmaps, shifted | -1 | Taylor | peak |
| `mmpose-0.x-udp` | mmpose 0.x, ViTPose | heatmaps | -1 | UDP's Taylor | peak |
| `mmpose` | mmpose 1.x | heatmaps, shifted | -1 | quarter by axis | peak |
| `mmpose-dark` | mmpose 1.x | heatmaps, shifted | -1 | Taylor | peak |
| `mmpose-udp` | mmpose 1.x | heatmaps | -1 | UDP's Taylor | peak |
| `simdr` | SimDR | probabilities, shifted | | | larger of both axes |
| `sa-simdr` | SimDR* | logits, shifted | | | smaller of both axes |
| `mmpose-simcc` | mmpose 1.x, RTMPose | logits | -1 | | smaller of both axes |
| `rtmlib` | rtmlib, of RTMPose's files | logits | -1 | | mean of both axes |
| `pct` | PCT | coordinates | | | mean of the tokens |

On ordinary crops a heatmap of stride 4 that is mirrored back by its own pixels lies three quarters
of a pixel too far to the left, and bins lie k - 1 too far to the right: hence the shifts, of a
pixel and of a bin. On DarkPose's crops and on UDP's it lies where it should (`models.geometry`).
Scores are peaks of heatmaps, probabilities or logits: they have no common scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from models import heatmap, pct
from models.heatmap import Heatmap
from models.pct import PCT
from models.pose_model import PoseModel, full_precision
from models.simcc import SimCC

#: UDP's bounds of a blurred heatmap before its logarithm.
_UDP_BOUNDS = (1e-3, 50.0)


@dataclass(frozen=True)
class HeatmapRule:
    """How a repository reads heatmaps.

    Args:
        refine: how it finds the place between pixels: `quarter`, a quarter of a pixel towards the
            higher neighbour where neither axis is at the border; `quarter-by-axis`, where that axis
            is not; `dark`, DARK's Taylor step; `udp`, UDP's; `udp-reflected`, the same after a blur
            that mirrors the map at its border and does not keep its height.
        shift: whether a map that is mirrored back is moved a pixel to the right.
        absent: x and y, in heatmap pixels, of a joint whose map has no value above 0.
    """

    refine: Literal["quarter", "quarter-by-axis", "dark", "udp", "udp-reflected"]
    shift: bool
    absent: int


@dataclass(frozen=True)
class SimCCRule:
    """How a repository reads SimCC's logits.

    Args:
        softmax: whether probabilities are made `before` the mirror image is averaged in, `after`
            it, or `never`.
        shift: whether x logits that are mirrored back are moved a bin to the left.
        score: what of the peaks of both axes is the score.
    """

    softmax: Literal["before", "after", "never"]
    shift: bool
    score: Literal["max", "min", "mean"]


#: The table's rows of heatmaps.
HEATMAP_RULES = {
    "hrnet": HeatmapRule("quarter", shift=True, absent=0),
    "darkpose": HeatmapRule("dark", shift=False, absent=0),
    "mmpose-0.x": HeatmapRule("quarter", shift=True, absent=-1),
    "mmpose-0.x-dark": HeatmapRule("dark", shift=True, absent=-1),
    "mmpose-0.x-udp": HeatmapRule("udp-reflected", shift=False, absent=-1),
    "mmpose": HeatmapRule("quarter-by-axis", shift=True, absent=-1),
    "mmpose-dark": HeatmapRule("dark", shift=True, absent=-1),
    "mmpose-udp": HeatmapRule("udp", shift=False, absent=-1),
}
#: The table's rows of SimCC.
SIMCC_RULES = {
    "simdr": SimCCRule("before", shift=True, score="max"),
    "sa-simdr": SimCCRule("after", shift=True, score="min"),
    "mmpose-simcc": SimCCRule("never", shift=False, score="min"),
    "rtmlib": SimCCRule("never", shift=False, score="mean"),
}


def decode(model: PoseModel, raw: Any, flipped: Any | None = None) -> Tensor:
    """A network's outputs to keypoints as its authors' evaluation has them.

    Args:
        model: whose card's profile says which rule.
        raw: the network's outputs for some crops.
        flipped: its outputs for the same crops mirrored; with None there is no flip test.

    Returns:
        `(N, K, 3)` float32: x, y in crop pixels, and its authors' score, which has no bounds.
    """
    name, representation = model.card.profile.reference, model.representation
    raw = full_precision(raw)
    if flipped is not None:
        flipped = full_precision(flipped)
    mirrored = model.skeleton.mirrored
    if isinstance(representation, Heatmap):
        rule = HEATMAP_RULES[name]
        merged = raw if flipped is None else merge_heatmaps(raw, flipped, mirrored, rule.shift)
        found = decode_heatmaps(merged, rule, representation.blur_kernel)
        return representation.in_input_pixels(found, raw)
    if isinstance(representation, SimCC):
        axes = merge_simcc(raw, flipped, mirrored, SIMCC_RULES[name])
        return decode_simcc(*axes, representation.k, SIMCC_RULES[name])
    assert isinstance(representation, PCT)
    found = pct.decode(raw, representation.tokenizer)
    if flipped is None:
        return found
    return model.flip_merge(found, pct.decode(flipped, representation.tokenizer))


# --------------------------------------------------------------------------------------- heatmaps


def merge_heatmaps(maps: Tensor, flipped: Tensor, mirrored: Sequence[int], shift: bool) -> Tensor:
    """The mean of heatmaps and of those of the mirror image.

    Args:
        maps: `(N, K, h, w)`.
        flipped: the same of the mirrored crops.
        mirrored: joint i of the mirrored person is joint `mirrored[i]` of the person.
        shift: whether what is mirrored back is moved a pixel to the right; the first column stays.

    Returns:
        `(N, K, h, w)`.
    """
    back = flipped[:, list(mirrored)].flip(-1)
    if shift:
        back = torch.cat((back[..., :1], back[..., :-1]), -1)
    return (maps + back) / 2


def decode_heatmaps(maps: Tensor, rule: HeatmapRule, blur_kernel: int = 11) -> Tensor:
    """Joints' positions and peaks.

    Args:
        maps: `(N, K, h, w)`.
        rule: whose arithmetic.
        blur_kernel: width of the blur before a Taylor step, odd.

    Returns:
        `(N, K, 3)`: x and y in heatmap pixels, and the raw peak.
    """
    width = maps.shape[-1]
    peaks, indices = maps.flatten(2).max(-1)
    x = torch.where(peaks > 0, indices % width, rule.absent)
    y = torch.where(peaks > 0, indices // width, rule.absent)
    if rule.refine == "udp":
        steps = _udp_steps(_blurred(maps, blur_kernel), x, y)
    elif rule.refine == "udp-reflected":
        steps = _udp_steps(_blurred(maps, blur_kernel, as_dark=False), x, y)
    else:
        steps = _steps(rule.refine, maps.flatten(0, 1), x.flatten(), y.flatten(), blur_kernel)
        steps = steps.view(*x.shape, 2)
    positions = torch.stack((x, y), -1) + steps
    return torch.cat((positions.to(maps), peaks[..., None]), -1)


def _steps(
    refine: Literal["quarter", "quarter-by-axis", "dark"],
    maps: Tensor,
    x: Tensor,
    y: Tensor,
    blur_kernel: int,
) -> Tensor:
    """How far each joint is from its peak's pixel: `(M, 2)` of maps `(M, h, w)`."""
    height, width = maps.shape[1:]
    if refine == "quarter":
        return heatmap.quarter_shift(maps, x, y)
    if refine == "dark":
        patches = heatmap.patches_at(_blurred(maps, blur_kernel), x, y, 2)
        return heatmap.taylor_step(patches, x, y, (width, height))
    # Of the other axis only the first row or column is left out: mmpose's `refine_keypoints`.
    across = (x > 1) & (x < width - 1) & (y > 0)
    down = (y > 1) & (y < height - 1) & (x > 0)
    return 0.25 * heatmap.slopes_at(maps, x, y).sign() * torch.stack((across, down), -1)


def _blurred(maps: Tensor, kernel: int, as_dark: bool = True) -> Tensor:
    """Whole maps blurred, in float64.

    Args:
        maps: `(..., h, w)`.
        kernel: the Gaussian's width in pixels.
        as_dark: whether there are zeros beyond the map, and it is brought back to its old height
            (DARK, equation 11, as released); else the map is mirrored at its border.
    """
    rows, columns = (_blur_matrix(size, kernel, as_dark, maps.device) for size in maps.shape[-2:])
    blurred = rows @ maps.double() @ columns.mT
    if not as_dark:
        return blurred
    highest = blurred.amax((-2, -1), keepdim=True)
    # An empty map stays empty, where the released code divides by zero.
    return blurred * (maps.amax((-2, -1), keepdim=True) / torch.where(highest == 0, 1, highest))


@lru_cache
def _blur_matrix(size: int, kernel: int, zeros: bool, device: torch.device) -> Tensor:
    """The `(size, size)` matrix that blurs a line."""
    weights, reach = cv2.getGaussianKernel(kernel, 0).ravel(), kernel // 2
    line = np.pad(np.eye(size), ((reach, reach), (0, 0)), "constant" if zeros else "reflect")
    blur = sum(weight * line[first : first + size] for first, weight in enumerate(weights))
    return torch.from_numpy(blur).to(device)


def _udp_steps(blurred: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """UDP's Newton step: second differences of neighbours, and no border.

    A joint without a peak is at -1, beyond its map: as released, its neighbours are then read out
    of the joint before, and the first joint's out of the person's last.

    Args:
        blurred: `(N, K, h, w)`.
        x: `(N, K)` int64.
        y: `(N, K)` int64.

    Returns:
        `(N, K, 2)` in heatmap pixels.
    """
    joints, height, width = blurred.shape[1:]
    row, size = width + 2, (width + 2) * (height + 2)
    logarithm = blurred.clamp(*_UDP_BOUNDS).log()
    line = torch.nn.functional.pad(logarithm, (1, 1, 1, 1), "replicate").flatten(1)
    middle = x + 1 + (y + 1) * row + size * torch.arange(joints, device=x.device)

    def at(dx: int, dy: int) -> Tensor:
        return line.gather(1, (middle + dx + dy * row) % line.shape[1])

    gx, gy = 0.5 * (at(1, 0) - at(-1, 0)), 0.5 * (at(0, 1) - at(0, -1))
    # The released code's guard against a flat map.
    tiny = float(np.finfo(np.float32).eps)
    hxx = at(1, 0) - 2 * at(0, 0) + at(-1, 0) + tiny
    hyy = at(0, 1) - 2 * at(0, 0) + at(0, -1) + tiny
    around = at(1, 0) + at(0, 1) + at(-1, 0) + at(0, -1)
    hxy = 0.5 * (at(1, 1) + at(-1, -1) + 2 * at(0, 0) - around)
    determinant = hxx * hyy - hxy**2
    safe = torch.where(determinant == 0, 1, determinant)
    return torch.stack(((hxy * gy - hyy * gx) / safe, (hxy * gx - hxx * gy) / safe), -1)


# ------------------------------------------------------------------------------------------ SimCC


def merge_simcc(
    raw: tuple[Tensor, Tensor],
    flipped: tuple[Tensor, Tensor] | None,
    mirrored: Sequence[int],
    rule: SimCCRule,
) -> tuple[Tensor, Tensor]:
    """What each axis' peak is looked for in, averaged with the mirror image's if there is one.

    Args:
        raw: logits `(N, K, W * k)` and `(N, K, H * k)`.
        flipped: the same of the mirrored crops.
        mirrored: joint i of the mirrored person is joint `mirrored[i]` of the person.
        rule: whose arithmetic.

    Returns:
        Logits or probabilities in the same shapes.
    """
    x, y = raw
    if flipped is not None:
        x_back, y_back = flipped[0][:, list(mirrored)].flip(-1), flipped[1][:, list(mirrored)]
        if rule.shift:
            x_back = torch.cat((x_back[..., 1:], x_back[..., -1:]), -1)
        if rule.softmax == "before":
            x, y, x_back, y_back = (part.softmax(-1) for part in (x, y, x_back, y_back))
        x, y = (x + x_back) / 2, (y + y_back) / 2
    elif rule.softmax == "before":
        x, y = x.softmax(-1), y.softmax(-1)
    if rule.softmax == "after":
        x, y = x.softmax(-1), y.softmax(-1)
    return x, y


def decode_simcc(x_values: Tensor, y_values: Tensor, k: float, rule: SimCCRule) -> Tensor:
    """The highest bin of each axis.

    Args:
        x_values: `(N, K, W * k)`, see `merge_simcc`.
        y_values: `(N, K, H * k)`.
        k: the splitting factor.
        rule: whose arithmetic.

    Returns:
        `(N, K, 3)`: x and y in input pixels, and the score. Logits none of which is above 0, by the
        rule's score, put the joint into bin -1.
    """
    (x_peaks, x), (y_peaks, y) = x_values.max(-1), y_values.max(-1)
    if rule.score == "mean":
        scores = (x_peaks + y_peaks) / 2
    else:
        scores = (torch.minimum if rule.score == "min" else torch.maximum)(x_peaks, y_peaks)
    bins = torch.where((scores > 0)[..., None], torch.stack((x, y), -1), -1)
    return torch.cat((bins.to(scores) / k, scores[..., None]), -1)
