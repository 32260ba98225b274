import io

import numpy as np
import pytest
from PIL import Image

from app import render
from models.coco import JOINT_NAMES
from models.skeletons import MPII, Skeleton

JOINT = {name: index for index, name in enumerate(JOINT_NAMES)}


def person(**joints):
    """Keypoints `(1, 17, 3)` of which only these are seen."""
    keypoints = np.zeros((1, 17, 3), np.float32)
    for name, point in joints.items():
        keypoints[0, JOINT[name]] = (*point, 0.9)
    return keypoints


def changed(before, after):
    return (before != after).any(-1)


@pytest.fixture
def canvas():
    return np.full((200, 160, 3), 128, np.uint8)


def test_a_limb_is_drawn_where_it_is_and_the_image_is_left_alone(canvas):
    drawn = render.draw(canvas, person(left_shoulder=(40, 50), left_elbow=(40, 150)))
    assert (canvas == 128).all()
    rows, columns = changed(canvas, drawn).nonzero()
    assert rows.min() < 50 < 150 < rows.max()
    assert columns.mean() == pytest.approx(40, abs=0.6)
    assert columns.max() - columns.min() < 30


def test_positions_are_finer_than_pixels(canvas):
    def centre(x):
        drawn = render.draw(canvas, person(left_shoulder=(x, 50), left_elbow=(x, 150)))
        weights = np.abs(drawn.astype(float) - 128).sum(-1)
        return (weights.sum(0) * np.arange(160)).sum() / weights.sum()

    assert centre(40.5) - centre(40) == pytest.approx(0.5, abs=0.15)


def test_sides_have_their_own_colours(canvas):
    points = {"shoulder": (40, 50), "elbow": (40, 100)}
    middles = []
    for side in ("left", "right"):
        joints = {f"{side}_{name}": point for name, point in points.items()}
        middles.append(render.draw(canvas, person(**joints))[75, 40])
    across = person(left_hip=(20, 75), right_hip=(60, 75))
    middles.append(render.draw(canvas, across)[75, 40])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(middles[one].astype(int) - middles[other]).max() > 80


def test_unsure_joints_and_their_limbs_are_left_out(canvas):
    keypoints = person(left_shoulder=(40, 50), left_elbow=(40, 150))
    keypoints[0, JOINT["left_elbow"], 2] = 0.29
    drawn = changed(canvas, render.draw(canvas, keypoints))
    assert drawn[50, 40]
    assert not drawn[100:].any()
    assert changed(canvas, render.draw(canvas, keypoints, min_score=0.2))[100:].any()
    assert not changed(canvas, render.draw(canvas, keypoints, min_score=1)).any()


def test_boxes_and_scores(canvas):
    keypoints, boxes = person(), np.array([[20, 30, 120, 180]], np.float32)
    framed = changed(canvas, render.draw(canvas, keypoints, boxes))
    assert framed[30, 70]
    assert framed[100, 20]
    assert not framed[50:160, 40:100].any()
    labelled = changed(canvas, render.draw(canvas, keypoints, boxes, np.array([0.87], np.float32)))
    assert labelled[:28].any()
    assert not framed[:26].any()


def test_large_people_get_broader_limbs():
    canvas = np.full((1000, 1000, 3), 128, np.uint8)
    widths = []
    for size in (100, 900):
        box = np.array([[0, 0, size, size]], np.float32)
        limb = person(left_shoulder=(0, 500), left_elbow=(999, 500))
        drawn = changed(render.draw(canvas, person(), box), render.draw(canvas, limb, box))
        widths.append(drawn[:, 500].sum())
    assert widths[1] > 3 * widths[0] > 0


def test_the_first_person_comes_on_top(canvas):
    left = person(left_shoulder=(20, 100), left_elbow=(140, 100))
    right = person(right_shoulder=(80, 20), right_elbow=(80, 180))
    for first, second in ((left, right), (right, left)):
        both = render.draw(canvas, np.concatenate((first, second)))
        np.testing.assert_array_equal(both[100, 80], render.draw(canvas, first)[100, 80])


def test_nobody(canvas):
    nobody = np.zeros((0, 17, 3), np.float32), np.zeros((0, 4), np.float32)
    np.testing.assert_array_equal(render.draw(canvas, *nobody, np.zeros(0, np.float32)), canvas)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1)])
def test_thin_pictures_and_points_far_outside(size):
    canvas = np.zeros((*size, 3), np.uint8)
    keypoints = np.full((1, 17, 3), 1e9, np.float32)
    keypoints[0, ::2, :2] *= -1
    boxes = np.array([[-1e6, -1e6, 1e6, 1e6]], np.float32)
    assert render.draw(canvas, keypoints, boxes, np.ones(1, np.float32)).shape == canvas.shape


def test_encoding_keeps_the_colours(canvas):
    canvas[:, :, 0] = 250
    png = Image.open(io.BytesIO(render.encode(canvas, "png")))
    assert png.format == "PNG"
    np.testing.assert_array_equal(np.asarray(png), canvas)
    jpeg = Image.open(io.BytesIO(render.encode(canvas, "jpeg")))
    assert jpeg.format == "JPEG"
    assert np.abs(np.asarray(jpeg).astype(int) - canvas).max() < 6


def test_mpii_has_its_own_limbs_and_sides(canvas):
    joint = {name: index for index, name in enumerate(MPII.names)}
    keypoints = np.zeros((1, 16, 3), np.float32)
    points = {"pelvis": (40, 150), "thorax": (40, 50), "right_hip": (100, 150)}
    for name, point in points.items():
        keypoints[0, joint[name]] = (*point, 0.9)
    drawn = render.draw(canvas, keypoints, skeleton=MPII)
    spine, hip = drawn[100, 40].astype(int), drawn[150, 70].astype(int)
    # A thin line's colour is not quite its own.
    assert np.abs(spine - render._CENTRE).max() < 40
    assert np.abs(hip - render._RIGHT).max() < 40
    assert (drawn[100, 100] == 128).all()


def test_joints_without_known_limbs_are_points(canvas):
    skeleton = Skeleton(("one", "two"))
    keypoints = np.array([[[40, 50, 0.9], [40, 150, 0.9]]], np.float32)
    drawn = changed(canvas, render.draw(canvas, keypoints, skeleton=skeleton))
    assert drawn[50, 40]
    assert drawn[150, 40]
    assert not drawn[100].any()
