import numpy as np
import pytest

from app.pipeline import Options, Poses
from app.tracking import LOST_SECONDS, Tracker

MIN_SCORE = 0.3
#: 15 frames a second.
STEP = 1 / 15


def poses(*people):
    """People as `(x, score)`: boxes of 40 x 100 pixels, joints in their middle."""
    places = np.array([x for x, _ in people], np.float32).reshape(-1, 1)
    boxes = np.concatenate((places, places * 0 + 50, places + 40, places * 0 + 150), 1)
    scores = np.array([score for _, score in people], np.float32)
    keypoints = np.ones((len(people), 17, 3), np.float32)
    keypoints[..., 0] = places + 20
    return Poses("simcc-small", boxes, scores * 0.5, keypoints, {}, scores)


@pytest.fixture
def track():
    return Tracker(MIN_SCORE, smooth=False)


def test_people_keep_their_ids_whatever_their_order(track):
    first = track(poses((0, 0.9), (200, 0.5)), 0.0)
    assert first.track_ids.tolist() == [1, 2]
    for number in range(1, 10):
        left, right = (4 * number, 0.4), (200 - 4 * number, 0.8)
        order = (right, left) if number % 2 else (left, right)
        found = track(poses(*order), number * STEP)
        assert found.track_ids.tolist() == ([2, 1] if number % 2 else [1, 2])
        assert found.boxes[:, 0].tolist() == [x for x, _ in order]


def test_the_next_one_is_somebody_else_and_has_an_id_when_seen_twice(track):
    track(poses((0, 0.9)), 0.0)
    assert track(poses((0, 0.9), (200, 0.9)), STEP).track_ids.tolist() == [1, 0]
    assert track(poses((0, 0.9), (200, 0.9)), 2 * STEP).track_ids.tolist() == [1, 2]


def test_the_detectors_doubts_are_believed_of_people_who_are_followed_only(track):
    assert Tracker.asking(Options("simcc-small", min_score=0.3)).min_score == pytest.approx(0.1)
    track(poses((0, 0.9)), 0.0)
    found = track(poses((300, 0.2), (2, 0.15)), STEP)
    assert found.boxes[:, 0].tolist() == [2]
    assert found.track_ids.tolist() == [1]
    # Nobody's track jumps to a doubtful box that is not where he was.
    assert len(track(poses((50, 0.2)), 2 * STEP).boxes) == 0


def test_a_stranger_gets_nobodys_id_for_the_sake_of_whoever_is_lost(track):
    for number in range(2):
        track(poses((100, 0.9), (250, 0.9)), number * STEP)
    assert track(poses((120, 0.9), (78, 0.9)), 2 * STEP).track_ids.tolist() == [1, 0]


def test_who_is_hidden_for_a_moment_is_the_same_one(track):
    track(poses((0, 0.9)), 0.0)
    track(poses((0, 0.9)), STEP)
    assert len(track(poses(), 2 * STEP).boxes) == 0
    assert track(poses((0, 0.9)), LOST_SECONDS - STEP).track_ids.tolist() == [1]


def test_who_was_away_for_long_is_somebody_else(track):
    track(poses((0, 0.9)), 0.0)
    track(poses((0, 0.9)), STEP)
    back = LOST_SECONDS + 0.5
    assert track(poses((0, 0.9)), back).track_ids.tolist() == [0]
    assert track(poses((0, 0.9)), back + STEP).track_ids.tolist() == [2]


def test_frames_may_be_missing(track):
    """A walker of 100 pixels a second, seen at uneven times."""
    for seconds in (0.0, 0.1, 0.2, 0.3, 0.9, 1.0, 1.7, 1.8):
        found = track(poses((100 * seconds, 0.9)), seconds)
        assert found.track_ids.tolist() == [1]


def test_videos_do_not_share_ids(track):
    track(poses((0, 0.9), (100, 0.9)), 0.0)
    assert Tracker(MIN_SCORE, smooth=False)(poses((0, 0.9)), 0.0).track_ids.tolist() == [1]


def test_smoothed_joints_follow_and_all_else_is_as_it_was():
    smooth = Tracker(MIN_SCORE, smooth=True)
    smooth(poses((0, 0.9)), 0.0)
    given = poses((10, 0.9), (200, 0.9))
    found = smooth(given, STEP)
    assert found.track_ids.tolist() == [1, 0]
    assert (found.keypoints[0, :, 0] > 20).all()
    assert (found.keypoints[0, :, 0] < 30).all()
    # Whoever is not followed has nothing to be smoothed with.
    assert (found.keypoints[1] == given.keypoints[1]).all()
    assert (found.keypoints[..., 2] == given.keypoints[..., 2]).all()
    assert (found.boxes == given.boxes).all()
    assert (given.keypoints[0, :, 0] == 30).all()


def test_nobody(track):
    for number in range(3):
        found = track(poses(), number * STEP)
        assert found.keypoints.shape == (0, 17, 3)
        assert found.track_ids.tolist() == []
