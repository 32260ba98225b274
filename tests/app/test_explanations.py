import base64

import numpy as np
import pytest

from app.explanations import HeatmapExplained, PCTExplained, SimCCExplained, explained
from app.pipeline import Explanation

AFFINE = np.array([[2.0, 0, 10], [0, 2.0, 20]])
GRID = {"steps": np.full(2, 0.5, np.float32), "origins": np.zeros(2, np.float32)}


def body(**seen):
    return explained(Explanation((192, 256), AFFINE, seen))


def unpacked(part):
    data = np.frombuffer(base64.b64decode(part["data"]), np.uint8).reshape(part["shape"])
    peaks = np.array(part["peaks"]).reshape(-1, *[1] * (data.ndim - 1))
    return data / 255 * peaks


def test_distributions_come_back_to_half_a_step():
    x, y = np.random.rand(17, 384).astype(np.float32), np.zeros((17, 512), np.float32)
    told = body(x=x, y=y, **GRID)
    SimCCExplained.model_validate(told, strict=True, extra="forbid")
    np.testing.assert_allclose(unpacked(told["x"]), x, atol=0.51 / 255)
    assert not unpacked(told["y"]).any()
    assert told["grid"] == {"step": [0.5, 0.5], "origin": [0, 0]}
    assert told["crop_to_image"] == [[2, 0, 10], [0, 2, 20]]


def test_maps_keep_their_shape_and_what_passes_one():
    maps = 3 * np.random.rand(17, 64, 48).astype(np.float32)
    told = body(maps=maps, **GRID)
    HeatmapExplained.model_validate(told, strict=True, extra="forbid")
    np.testing.assert_allclose(unpacked(told["maps"]), maps, atol=3 * 0.51 / 255)
    assert len(told["maps"]["data"]) == 4 * 17 * 64 * 48 / 3


def test_tokens_and_what_they_move():
    moves = np.random.rand(34, 17).astype(np.float32)
    seen = {"tokens": np.arange(34), "probabilities": np.full(34, 0.25, np.float32)}
    told = body(moves=moves, **seen)
    PCTExplained.model_validate(told, strict=True, extra="forbid")
    assert told["tokens"] == list(range(34))
    assert told["probabilities"] == [0.25] * 34
    np.testing.assert_allclose(told["moves"], moves, atol=0.0051)


@pytest.mark.parametrize(
    ("query", "headers", "words"),
    [
        ("explain=true&max_people=9", {}, ["max_people=9", "explain", "from 1 to 8"]),
        ("explain=true&boxes=" + str([[0, 0, 9, 9]] * 9), {}, ["9 boxes", "explain", "up to 8"]),
        ("explain=true", {"Accept": "image/png"}, ["explain", "application/json", "image/png"]),
        ("explain=perhaps", {}, ["explain", "true or false"]),
    ],
)
def test_what_explain_does_not_take(running, photo, query, headers, words):
    running.refuses(running.post(photo, "image/jpeg", params=query, headers=headers), 422, *words)


def test_explain_is_for_one_image(running, photo):
    running.refuses(running.send(photo, photo, params="explain=true"), 422, "explain", "one image")


def test_explain_asks_for_few_people_and_is_off_unless_asked_for(running, photo):
    for query in ("", "explain=true"):
        running.post(photo, "image/jpeg", params=query)
    (_, plain), (_, asked) = running.pipeline.seen
    assert (plain.explain, plain.max_people) == (False, 100)
    assert (asked.explain, asked.max_people) == (True, 8)
