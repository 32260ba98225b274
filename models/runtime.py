"""How a network runs: one face for PyTorch itself and for what is quicker on some device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.pose_model import PoseModel

#: From normalised crops `(N, 3, H, W)` to raw outputs and to the joints `(N, K, 3)` that these say,
#: in crop pixels.
Estimator = Callable[[Tensor], tuple[Any, Tensor]]


class ConversionError(ValueError):
    """A network that a runtime cannot run: the message says why."""


class Runner(Protocol):
    """A network, run by whatever is quickest."""

    def __call__(self, crops: Tensor) -> Any:
        """Run the network.

        Args:
            crops: `(N, 3, H, W)` normalised, float32, on the network's device; any N from 1.

        Returns:
            What the network itself gives: a tensor or a tuple of tensors, N first. The next call
            may write to the same memory.
        """
        ...


class TorchRunner:
    """PyTorch itself, in the type of the network's weights.

    Args:
        network: ready for inference.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._dtype = next(network.parameters()).dtype

    def __call__(self, crops: Tensor) -> Any:
        """Run the network: see `Runner`."""
        return self._network(crops.to(self._dtype))


def estimator(model: PoseModel, run: Runner) -> Estimator:
    """A pose model's way from crops to joints.

    Args:
        model: decodes.
        run: the model's network.

    Returns:
        The joints of a crop are not numbers where any of its raw outputs is none: decoding looks
        for what is largest, and may well make something finite of infinity.
    """

    def estimate(crops: Tensor) -> tuple[Any, Tensor]:
        raw = run(crops)
        return raw, model.decode(raw).masked_fill(~_finite(raw)[:, None, None], torch.nan)

    return estimate


def _finite(raw: Any) -> Tensor:
    """`(N,)`: for which crops all of a network's outputs are numbers.

    A sum is one only where all that is summed up are, and takes a twentieth of the time.
    """
    sums = [part.flatten(1).sum(1, dtype=torch.float32) for part in _parts(raw)]
    return torch.stack(sums).isfinite().all(0)


def _parts(raw: Any) -> tuple[Tensor, ...]:
    """A network's outputs, one or several."""
    return raw if isinstance(raw, tuple) else (raw,)


def relative_distance(found: Any, expected: Any) -> float:
    """How far a network's outputs are from what they should be.

    Args:
        found: what a runner gives.
        expected: what PyTorch gives.

    Returns:
        The norm of the difference beside that of what is expected, the largest of all outputs:
        infinite where shapes differ, and no number where an output is none.
    """
    distances = []
    for ours, theirs in zip(_parts(found), _parts(expected), strict=True):
        if ours.shape != theirs.shape:
            return math.inf
        a, b = ours.cpu().double(), theirs.cpu().double()
        distances.append((a - b).norm() / b.norm().clamp_min(1e-6))
    # Not Python's, which passes over what is no number.
    return float(torch.stack(distances).max())


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
