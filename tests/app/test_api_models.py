import models
from app.schemas import ModelsResponse
from models import catalogue
from models.calibration import Calibration
from models.catalogue import bundled
from models.coco import FLIP_PAIRS, JOINT_NAMES, SKELETON


def test_every_card_is_shown_with_whether_it_is_loaded(make):
    running = make(models=("dark-small", "pct-small"), representation="dark")
    body = running.client.get("/models").json()
    ModelsResponse.model_validate(body, extra="forbid")
    assert body["default"] == "dark-small"
    shown = {card["name"]: card for card in body["models"]}
    assert list(shown) == models.names()
    assert {name for name, card in shown.items() if card["loaded"]} == {"dark-small", "pct-small"}
    for name, card in shown.items():
        known = models.card(name)
        assert card.keys() >= set(vars(known))
        assert card["representation"] == known.representation
        assert tuple(card["input_size"]) == known.input_size
        assert card["measured"] == known.measured
        assert card["scores"] == ("calibrated" if known.bundled else "raw")
        if known.bundled:
            assert Calibration.parse(card["calibration"]) == known.calibration
        assert card["licence"] == known.licence


def test_how_to_read_the_keypoints(running):
    body = running.client.get("/models").json()
    assert body["joint_names"] == list(JOINT_NAMES)
    assert body["skeleton"] == [list(limb) for limb in SKELETON]
    assert body["flip_pairs"] == [list(pair) for pair in FLIP_PAIRS]


def test_how_to_draw_the_keypoints(running):
    body = running.client.get("/models").json()
    left, right, middle = "#56b4e9", "#e69f00", "#f5f5f5"
    names = body["joint_names"]
    sides = {"left": left, "right": right, "nose": middle}
    assert body["joint_colours"] == [sides[name.partition("_")[0]] for name in names]
    colours = dict(zip(map(tuple, body["skeleton"]), body["skeleton_colours"], strict=True))
    assert colours[names.index("left_knee"), names.index("left_hip")] == left
    assert colours[names.index("left_hip"), names.index("right_hip")] == middle
    mpii = next(card for card in body["models"] if len(card["joint_names"]) == 16)
    assert len(mpii["joint_colours"]) == 16
    assert len(mpii["skeleton_colours"]) == len(mpii["skeleton"])


def test_what_a_loaded_model_takes(running):
    cards = {card["name"]: card for card in running.client.get("/models").json()["models"]}
    assert cards["simcc-small"]["milliseconds"] == 12.5
    assert {card["milliseconds"] for card in cards.values() if not card["loaded"]} == {None}


def test_costs_are_counted_before_anybody_asks(make):
    catalogue._counted.cache_clear()
    make()
    assert catalogue._counted.cache_info().currsize == len(bundled())
