"""Scores that mean something: how likely a joint is right, in [0, 1], alike in all representations.

What a representation says of its own certainty (a peak, a probability, a spread) has a scale of its
own. Beta calibration (Kull, Silva Filho and Flach, AISTATS 2017) maps it to a probability,

    p = sigmoid(a ln s - b ln(1 - s) + c_j),    a, b >= 0,

which never changes the order of two scores of one joint. Each joint has an offset c_j of its own,
drawn towards the common one, since a wrist is missed more often than a shoulder of the same score.

A joint is right where its term of COCO's object keypoint similarity, exp(-d^2 / (2 s^2 k^2)), is at
least 0.5: s^2 is the person's annotated area and k twice the joint's OKS_SIGMAS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou

from models.coco import JOINTS, OKS_SIGMAS

#: Scores are kept this far from 0 and 1, where the logarithms end.
_EDGE = 1e-4
#: By how much, in logits, joints are expected to differ from each other: the prior's spread.
_JOINT_SPREAD = 0.5
#: Keeps the slopes finite where the scores tell right from wrong without a mistake.
_SLOPE_SPREAD = 30.0
#: Intersection over union from which on a box is the annotated person's.
_SAME_BOX = 0.5
#: Bins of equal width in the expected calibration error and the reliability curve.
BINS = 10


class CalibrationError(ValueError):
    """A calibration that cannot be used or fitted: the message says what is wrong."""


# ------------------------------------------------------------------------------------ application


@dataclass(frozen=True)
class Calibration:
    """A monotone map from a model's own scores to probabilities.

    Args:
        slopes: a and b, both at least 0.
        offsets: c, one for each joint.

    Raises:
        CalibrationError: they are not that many finite numbers, or a slope is negative.
    """

    slopes: tuple[float, float]
    offsets: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values, count in (("slopes", self.slopes, 2), ("offsets", self.offsets, JOINTS)):
            if len(values) != count or not all(map(_is_finite, values)):
                raise CalibrationError(f"{name} must be {count} finite numbers, not {values}")
        if min(self.slopes) < 0:
            raise CalibrationError(f"slopes must not be negative, not {self.slopes}")

    @classmethod
    def parse(cls, table: Any) -> Calibration:
        """A calibration from a card's table.

        Raises:
            CalibrationError: a key is missing or unknown, or its value cannot be used.
        """
        if not isinstance(table, dict) or table.keys() != {"slopes", "offsets"}:
            raise CalibrationError(f"a calibration has slopes and offsets, not {table!r}")
        for name, values in table.items():
            if not isinstance(values, list | tuple):
                raise CalibrationError(f"{name} must be a list of numbers, not {values!r}")
        return cls(tuple(table["slopes"]), tuple(table["offsets"]))

    def table(self) -> dict[str, Any]:
        """The table that `parse` reads."""
        return asdict(self)

    def __call__(self, scores: Tensor) -> Tensor:
        """Calibrate: `(..., K)` of a model's own scores in [0, 1] to as many probabilities."""
        rise, fall = _logarithms(scores)
        offsets = _on_device(self.offsets, scores.dtype, scores.device)
        return torch.sigmoid(self.slopes[0] * rise + self.slopes[1] * fall + offsets)


def _is_finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _logarithms(scores: Tensor) -> tuple[Tensor, Tensor]:
    """`ln s` and `-ln(1 - s)`, both of which grow with the score."""
    inner = scores.clamp(_EDGE, 1 - _EDGE)
    return inner.log(), -(-inner).log1p()


@lru_cache
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


# -------------------------------------------------------------------------------------------- fit


def fit(scores: Tensor, right: Tensor, labelled: Tensor) -> Calibration:
    """The calibration under which what happened is likeliest, by Newton's method.

    It is a logistic regression on `ln s`, `-ln(1 - s)` and the joint. Where a slope would come out
    negative it is left out, as in the paper.

    Args:
        scores: `(P, K)` a model's own scores, in [0, 1].
        right: `(P, K)` booleans.
        labelled: `(P, K)` booleans; only joints that are can be right or wrong.

    Raises:
        CalibrationError: the labelled joints are all right or all wrong, or there is none.
    """
    outcome = right[labelled].double()
    if len(outcome) == 0 or outcome.min() == outcome.max():
        raise CalibrationError(
            f"nothing to calibrate on: {int(outcome.sum())} of {len(outcome)} labelled joints are "
            f"right; some must be right and some wrong"
        )
    joints = torch.arange(scores.shape[1]).expand(scores.shape)[labelled]
    of_joint = functional.one_hot(joints, scores.shape[1]).double()
    logarithms = torch.stack(_logarithms(scores[labelled].double()), -1)
    used = [0, 1]
    while True:
        columns = (logarithms[:, used], torch.ones_like(of_joint[:, :1]), of_joint)
        precision = torch.tensor(
            [_SLOPE_SPREAD**-2] * len(used) + [1e-9] + [_JOINT_SPREAD**-2] * scores.shape[1]
        )
        weights = _logistic_regression(torch.cat(columns, -1), outcome, precision.double())
        falling = [index for index, weight in zip(used, weights, strict=False) if weight < 0]
        if not falling:
            break
        used = [index for index in used if index not in falling]
    slopes = [0.0, 0.0]
    for index, weight in zip(used, weights.tolist(), strict=False):
        slopes[index] = weight
    offsets = weights[len(used)] + weights[len(used) + 1 :]
    return Calibration((slopes[0], slopes[1]), tuple(offsets.tolist()))


def _logistic_regression(columns: Tensor, outcome: Tensor, precision: Tensor) -> Tensor:
    """The likeliest weights `(F,)` of columns `(M, F)` under Gaussian priors around 0."""
    weights = columns.new_zeros(columns.shape[1])
    for _ in range(100):
        probability = torch.sigmoid(columns @ weights)
        gradient = columns.T @ (probability - outcome) + precision * weights
        curvature = (probability * (1 - probability))[:, None] * columns
        step = torch.linalg.solve(columns.T @ curvature + precision.diag(), gradient)
        # Far from the optimum a whole step may overshoot: the logits move by 5 at most.
        weights = weights - step * (5 / (columns @ step).abs().max().clamp_min(5))
        if step.abs().max() < 1e-8:
            break
    return weights


# ---------------------------------------------------------------------------------------- measure


class Reliability(NamedTuple):
    """How often joints of similar scores were right, a row for each bin of scores."""

    counts: Tensor
    """`(BINS,)` how many joints' scores lie in the bin."""
    scores: Tensor
    """`(BINS,)` their mean score; not a number where there is none."""
    right: Tensor
    """`(BINS,)` the share of them that was right; not a number where there is none."""


def reliability(scores: Tensor, right: Tensor) -> Reliability:
    """The reliability curve over BINS bins of equal width.

    Args:
        scores: `(M,)` in [0, 1].
        right: `(M,)` booleans.
    """
    bins = (scores * BINS).long().clamp_max(BINS - 1)
    counts = bins.bincount(minlength=BINS)
    summed = bins.bincount(scores.double(), BINS)
    hits = bins.bincount(right.double(), BINS)
    return Reliability(counts, summed / counts, hits / counts)


def expected_calibration_error(scores: Tensor, right: Tensor) -> float:
    """How far a score is from the share of right joints, on average (Naeini et al., AAAI 2015).

    The mean over BINS bins of equal width, weighted by how many joints lie in each, of the distance
    between their mean score and the share of them that was right.

    Args:
        scores: `(M,)` in [0, 1], at least one.
        right: `(M,)` booleans.
    """
    counts, mean, share = reliability(scores, right)
    return float(((mean - share).abs().nan_to_num() * counts).sum() / counts.sum())


def area_under_curve(scores: Tensor, right: Tensor) -> float:
    """The chance that a right joint scores higher than a wrong one (area under the ROC curve).

    Equal scores count as half. Not a number where all are right or all are wrong.

    Args:
        scores: `(M,)`.
        right: `(M,)` booleans.
    """
    _, places, counts = scores.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    ranks = (counts.cumsum(0).double() - (counts - 1) / 2)[places]
    hits, misses = int(right.sum()), int((~right).sum())
    if not hits or not misses:
        return math.nan
    return float((ranks[right].sum() - hits * (hits + 1) / 2) / (hits * misses))


# ------------------------------------------------------------------------------------------- data


class Outcomes(NamedTuple):
    """What a model said of some people, and what was true."""

    scores: Tensor
    """`(P, K)`."""
    right: Tensor
    """`(P, K)` booleans; see the module."""
    labelled: Tensor
    """`(P, K)` booleans."""
    held_out: Tensor
    """`(P,)` booleans: the half of the pictures on which nothing is fitted."""


def outcomes(dataset: dict[str, Any], results: Sequence[dict[str, Any]]) -> Outcomes:
    """Compare COCO results with their annotations.

    A result is the annotated person's whose box overlaps its own most, by at least one half; of
    several the best; results of nobody are left out. Sorted by their ids, the pictures of people
    are held out by turns.

    Args:
        dataset: annotations in COCO layout.
        results: COCO results with `bbox`.

    Raises:
        CalibrationError: no result is an annotated person's.
    """
    people: dict[int, list[dict[str, Any]]] = {}
    for person in dataset["annotations"]:
        if person.get("num_keypoints", 0) > 0:
            people.setdefault(person["image_id"], []).append(person)
    found: dict[int, list[dict[str, Any]]] = {}
    for result in sorted(results, key=lambda result: -float(result["score"])):
        found.setdefault(result["image_id"], []).append(result)
    pairs = [
        (person, result, turn % 2 == 1)
        for turn, image in enumerate(sorted(people))
        for person, result in _pairs(people[image], found.get(image, []))
    ]
    if not pairs:
        raise CalibrationError("no result is an annotated person's")
    truth = _keypoints([person for person, _, _ in pairs])
    predicted = _keypoints([result for _, result, _ in pairs])
    areas = torch.tensor([person["area"] for person, _, _ in pairs]).double()
    spread = areas[:, None] * (2 * torch.tensor(OKS_SIGMAS).double()) ** 2
    distances = (predicted[..., :2] - truth[..., :2]).square().sum(-1)
    return Outcomes(
        predicted[..., 2],
        torch.exp(-distances / (2 * spread)) >= 0.5,
        truth[..., 2] > 0,
        torch.tensor([held_out for _, _, held_out in pairs]),
    )


def _pairs(
    people: list[dict[str, Any]], results: list[dict[str, Any]]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """One picture's people with their results, which come best first."""
    if not results:
        return []
    overlaps = box_iou(_boxes(results), _boxes(people))
    pairs = []
    for overlap, result in zip(overlaps, results, strict=True):
        best = int(overlap.argmax())
        if overlap[best] >= _SAME_BOX:
            pairs.append((people[best], result))
            overlaps[:, best] = 0
    return pairs


def _keypoints(entries: list[dict[str, Any]]) -> Tensor:
    return (
        torch.tensor([entry["keypoints"] for entry in entries]).double().view(len(entries), -1, 3)
    )


def _boxes(entries: list[dict[str, Any]]) -> Tensor:
    boxes = torch.tensor([entry["bbox"] for entry in entries]).double()
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), -1)


# ----------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class Report:
    """How good a calibration is, on the half of the pictures on which it was not fitted."""

    calibration: Calibration
    """Fitted on the other half."""
    joints: int
    """Labelled joints that were scored."""
    right: float
    """The share of them that was right."""
    error: float
    """Expected calibration error."""
    error_before: float
    """That of the model's own scores."""
    error_swapped: float
    """The error where the halves change places: how much chance there is in `error`."""
    error_detected: float
    """The error on detected instead of annotated boxes, calibrated on annotated ones."""
    ranking: float
    """Area under the ROC curve."""
    ranking_before: float
    """That of the model's own scores."""
    curve: Reliability


def calibrate(annotated: Outcomes, detected: Outcomes) -> Report:
    """Fit on one half of the pictures and measure on the other.

    Args:
        annotated: a model's own scores, on annotated boxes.
        detected: the same on detected boxes.

    Raises:
        CalibrationError: a half cannot be fitted.
    """
    fitted, swapped = (
        fit(annotated.scores[half], annotated.right[half], annotated.labelled[half])
        for half in (~annotated.held_out, annotated.held_out)
    )
    before, right = _joints(annotated, annotated.held_out)
    after, _ = _joints(annotated, annotated.held_out, fitted)
    return Report(
        calibration=fitted,
        joints=len(right),
        right=float(right.double().mean()),
        error=expected_calibration_error(after, right),
        error_before=expected_calibration_error(before, right),
        error_swapped=expected_calibration_error(*_joints(annotated, ~annotated.held_out, swapped)),
        error_detected=expected_calibration_error(*_joints(detected, detected.held_out, fitted)),
        ranking=area_under_curve(after, right),
        ranking_before=area_under_curve(before, right),
        curve=reliability(after, right),
    )


def _joints(
    found: Outcomes, half: Tensor, calibration: Calibration | None = None
) -> tuple[Tensor, Tensor]:
    """Scores and whether they were right, of all labelled joints of some people."""
    scores = found.scores if calibration is None else calibration(found.scores)
    chosen = found.labelled & half[:, None]
    return scores[chosen], found.right[chosen]


def draw_reliability(curves: dict[str, Reliability], path: Path) -> None:
    """Draw reliability curves, and below them how many joints have which score.

    Args:
        curves: by the models' names.
        path: the file; its ending, such as `.svg` or `.png`, tells the format.

    Raises:
        ModuleNotFoundError: matplotlib, of the extra `eval`, is not installed.
        ValueError: matplotlib does not know the format.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Without a salt, and with a date, no two drawings of the same figures would be equal.
    with mpl.rc_context({"svg.hashsalt": "posemux"}):
        figure = Figure(figsize=(3.4 * len(curves), 4.4), layout="constrained")
        panels = figure.subplots(
            2, len(curves), sharex=True, squeeze=False, height_ratios=(3, 1), sharey="row"
        )
        edges = np.arange(BINS) / BINS
        for column, (name, curve) in enumerate(curves.items()):
            upper, lower = panels[:, column]
            seen: npt.NDArray[np.bool_] = curve.counts.numpy() > 0
            upper.plot([0, 1], [0, 1], color="grey", linestyle=":")
            upper.plot(curve.scores.numpy()[seen], curve.right.numpy()[seen], marker="o")
            upper.set(title=name, xlim=(0, 1), ylim=(0, 1))
            lower.bar(edges, curve.counts.numpy(), width=1 / BINS, align="edge", edgecolor="white")
            lower.set_xlabel("score")
        panels[0, 0].set_ylabel("share of right joints")
        panels[1, 0].set_ylabel("joints")
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=metadata, dpi=120)
