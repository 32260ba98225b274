from __future__ import annotations

import pytest

from models.complexity import complexity
from models.network import Architecture
from models.training.loop import card_of

from .recipes_support import read


def counted(recipe: str) -> tuple[int, float]:
    found = complexity(card_of(recipe, read(recipe).architecture))
    return found.parameters, found.gmacs


@pytest.mark.parametrize(
    ("recipe", "parameters", "gmacs"),
    [
        # Parameters as the authors' own networks have; multiply-adds as measured on them.
        ("simba-res50-heatmap", 33_999_697, 5.43),
        ("hrnet-w32-heatmap", 28_536_113, 7.65),
        ("simba-res50-simcc", 36_753_105, 5.47),
        ("res50-simcc-upfree", 25_688_476, 4.07),
        # 22.22 of theirs, and 0.04 for a score of each joint, which theirs do not have.
        ("pct-swin-base", 127_873_038, 22.26),
        # TokenPose, table 1: 6.6 M.
        ("tokenpose-s-v1-heatmap", 6_620_736, 2.73),
    ],
)
def test_counts_agree_with_the_authors_networks(recipe: str, parameters: int, gmacs: float) -> None:
    found = counted(recipe)
    assert found[0] == parameters
    assert found[1] == pytest.approx(gmacs, abs=0.02)


def test_a_multiply_add_is_one_operation() -> None:
    """What a head adds, by hand: its convolution, its linear layers."""
    plain = {"representation": "simcc", "backbone": "regnetx_002", "input_size": (64, 64)}
    one, two = (
        complexity(
            card_of("", Architecture.parse(plain | {"options": {"feature_stride": 32, "k": k}}))
        )
        for k in (1.0, 2.0)
    )
    # 17 vectors of 2x2 features to 64 more bins on each axis, and a bias for each bin.
    assert two.macs - one.macs == 17 * 4 * 2 * 64
    assert two.parameters - one.parameters == (4 + 1) * 2 * 64


def test_low_resolution_is_cheap() -> None:
    assert counted("simba-res50-heatmap@64x64")[1] == pytest.approx(5.426 / 12, rel=0.01)
