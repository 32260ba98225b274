"""The 1€ filter, of all joints of all people at once.

"1€ Filter: A Simple Speed-based Low-pass Filter for Noisy Input in Interactive Systems" (Casiez,
Roussel and Vogel, CHI 2012).

A low-pass filter whose cutoff rises with speed: what rests is smoothed much, which takes the
jitter out of it, and what moves is smoothed little, so that it does not lag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(slots=True)
class _State:
    """What is known of one person."""

    seconds: float
    points: Array
    velocities: Array


class OneEuroFilter:
    """Smooths people's joints over time.

    Args:
        min_cutoff: the cutoff at rest, in Hz: less is smoother.
        beta: how much the cutoff rises, in Hz, with each person's size a second: more lags less.
            The authors' has no unit, since they filter a single thing of one size.
        derivative_cutoff: of the speed itself, in Hz; the authors' 1.
        forget_after: seconds after which somebody unseen begins anew.
    """

    def __init__(
        self,
        min_cutoff: float = 1.0,
        beta: float = 4.0,
        derivative_cutoff: float = 1.0,
        forget_after: float = 0.5,
    ) -> None:
        self._min_cutoff = min_cutoff
        self._beta = beta
        self._derivative_cutoff = derivative_cutoff
        self._forget_after = forget_after
        self._states: dict[int, _State] = {}

    def __call__(self, people: Sequence[int], points: Array, sizes: Array, seconds: float) -> Array:
        """Smooth one image's people.

        Args:
            people: P numbers, who each one is.
            points: `(P, K, 2)` pixels.
            sizes: `(P,)` each person's size in pixels, such as the square root of the box's area:
                someone twice as near moves twice as many pixels.
            seconds: when it was taken; later than the last one.

        Returns:
            `(P, K, 2)`.
        """
        self._states = {
            person: state
            for person, state in self._states.items()
            if seconds - state.seconds <= self._forget_after
        }
        smooth = points.copy()
        velocities = np.zeros_like(points)
        rows = [row for row, person in enumerate(people) if person in self._states]
        if rows:
            before = [self._states[people[row]] for row in rows]
            elapsed = seconds - np.array([state.seconds for state in before])[:, None, None]
            last = np.stack([state.points for state in before])
            slow = np.stack([state.velocities for state in before])
            velocity = slow + _weight(self._derivative_cutoff, elapsed) * (
                (points[rows] - last) / elapsed - slow
            )
            # Of both coordinates at once: nothing may depend on where up is.
            speed = np.linalg.norm(velocity, axis=-1, keepdims=True) / sizes[rows, None, None]
            cutoff = self._min_cutoff + self._beta * speed
            smooth[rows] = last + _weight(cutoff, elapsed) * (points[rows] - last)
            velocities[rows] = velocity
        for row, person in enumerate(people):
            self._states[person] = _State(seconds, smooth[row], velocities[row])
        return smooth


def _weight(cutoff: float | Array, elapsed: Array) -> Array:
    """How much a new value counts in exponential smoothing with a cutoff in Hz."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff * elapsed))
