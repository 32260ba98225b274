import models
from app.schemas import ModelsResponse
from models.calibration import Calibration
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
