import numpy as np
import pytest

from app.smoothing import OneEuroFilter

FPS = 30.0
SIZES = np.array([100.0, 200.0])


def through(smooth, points, sizes=SIZES, people=(1, 2)):
    """Frame after frame, `(frames, P, K, 2)`."""
    return np.stack(
        [smooth(people, frame, sizes, number / FPS) for number, frame in enumerate(points)]
    )


def test_a_joint_alone_is_the_papers_algorithm():
    random = np.random.default_rng(0)
    values = np.cumsum(random.normal(0, 3, 40))
    points = np.stack((values, np.zeros(40)), -1)[:, None, None]
    found = through(OneEuroFilter(1.0, 4.0, 1.0), points, SIZES[:1], (7,))[:, 0, 0, 0]

    def alpha(cutoff):
        return 1 / (1 + 1 / (2 * np.pi * cutoff) * FPS)

    last, speed, expected = values[0], 0.0, [values[0]]
    for value in values[1:]:
        speed = alpha(1.0) * (value - last) * FPS + (1 - alpha(1.0)) * speed
        weight = alpha(1.0 + 4.0 * abs(speed) / 100)
        last = weight * value + (1 - weight) * last
        expected.append(last)
    assert found == pytest.approx(expected)


def test_who_stands_still_trembles_less_and_stays_in_place():
    noise = np.random.default_rng(1).normal(0, 2, (90, 2, 17, 2))
    found = through(OneEuroFilter(), 50 + noise)[15:]
    assert np.abs(np.diff(found, axis=0)).mean() < 0.35 * np.abs(np.diff(noise, axis=0)).mean()
    assert found.mean() == pytest.approx(50, abs=0.5)


def test_who_walks_lags_less_than_a_frame():
    speed = 300.0
    walk = np.zeros((60, 2, 17, 2))
    walk[..., 0] = speed / FPS * np.arange(60)[:, None, None]
    behind = (walk - through(OneEuroFilter(), walk))[30:, :, :, 0] / speed
    assert (behind > 0).all()
    # The same pixels are a slower walk to whoever is twice as near.
    assert behind[:, 0].max() < behind[:, 1].min() < 1 / FPS


def test_people_are_told_apart_whatever_their_order_and_company():
    random = np.random.default_rng(2)
    points = random.normal(100, 5, (20, 2, 17, 2))
    together = through(OneEuroFilter(), points)
    smooth = OneEuroFilter()
    for number, frame in enumerate(points):
        order = [1, 0] if number % 2 else [0, 1]
        found = smooth([order[0] + 1, order[1] + 1], frame[order], SIZES[order], number / FPS)
        assert found[order] == pytest.approx(together[number])
    assert through(OneEuroFilter(), points[:, 1:], SIZES[1:], (2,)) == pytest.approx(
        together[:, 1:]
    )


def test_who_was_away_begins_anew():
    smooth = OneEuroFilter(forget_after=0.5)
    at = np.zeros((1, 17, 2))
    smooth([1], at, SIZES[:1], 0.0)
    assert (smooth([1], at + 10, SIZES[:1], 0.4) < 10).all()
    assert (smooth([1], at + 50, SIZES[:1], 1.0) == 50).all()


def test_nobody():
    smooth = OneEuroFilter()
    assert smooth([], np.zeros((0, 17, 2)), np.zeros(0), 0.0).shape == (0, 17, 2)
