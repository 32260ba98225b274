from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import models
from models import calibration, catalogue
from models.calibration import (
    BINS,
    Calibration,
    CalibrationError,
    Outcomes,
    area_under_curve,
    expected_calibration_error,
    fit,
    outcomes,
    reliability,
)
from models.coco import JOINTS, OKS_SIGMAS

FLAT = (0.0,) * JOINTS
OFFSETS = tuple(0.5 + 0.05 * joint for joint in range(JOINTS))


def drawn(
    people: int, truth: Calibration | None = None, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, whether they were right by chance of a known calibration, and what was labelled."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(people, JOINTS, generator=generator)
    chances = scores if truth is None else truth(scores)
    right = torch.rand(people, JOINTS, generator=generator) < chances
    return scores, right, torch.rand(people, JOINTS, generator=generator) < 0.7


# ------------------------------------------------------------------------------------ application


def test_equal_slopes_of_one_are_the_identity_and_offsets_are_odds() -> None:
    scores = torch.linspace(0.01, 0.99, 50)[:, None].expand(-1, JOINTS)
    torch.testing.assert_close(Calibration((1.0, 1.0), FLAT)(scores), scores)
    tripled = Calibration((1.0, 1.0), (math.log(3),) * JOINTS)
    halves = torch.full((1, JOINTS), 0.5)
    torch.testing.assert_close(tripled(halves), torch.full((1, JOINTS), 0.75))


def test_each_joint_has_its_own_offset() -> None:
    offsets = [0.0] * JOINTS
    offsets[9] = -2.0
    found = Calibration((1.0, 1.0), tuple(offsets))(torch.full((3, JOINTS), 0.6))
    expected = torch.full((3, JOINTS), 0.6)
    expected[:, 9] = 1 / (1 + math.exp(2 - math.log(1.5)))
    torch.testing.assert_close(found, expected)


def test_every_score_becomes_a_probability_and_the_order_stays() -> None:
    scores = torch.linspace(0, 1, 200)[:, None].expand(-1, JOINTS)
    found = Calibration((1.6, 0.7), OFFSETS)(scores)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found.diff(dim=0) >= 0).all()
    assert (found[-1] - found[0] > 0.9).all()


# -------------------------------------------------------------------------------------------- fit


def test_a_fit_finds_the_calibration_that_the_outcomes_come_from() -> None:
    truth = Calibration((1.6, 0.7), OFFSETS)
    found = fit(*drawn(4000, truth))
    assert found.slopes == pytest.approx(truth.slopes, abs=0.1)
    assert found.offsets == pytest.approx(truth.offsets, abs=0.25)
    scores, right, labelled = drawn(4000, truth, seed=1)
    assert expected_calibration_error(scores[labelled], right[labelled]) > 0.03
    assert expected_calibration_error(found(scores)[labelled], right[labelled]) < 0.01


def test_what_is_not_labelled_is_not_learnt_from() -> None:
    scores, right, labelled = drawn(500, Calibration((1.6, 0.7), OFFSETS))
    assert fit(scores, right & labelled, labelled) == fit(scores, right | ~labelled, labelled)


def test_a_joint_that_is_never_labelled_gets_the_others_offset() -> None:
    scores, right, labelled = drawn(2000, Calibration((1.0, 1.0), (1.0,) * JOINTS))
    labelled[:, 4] = False
    found = fit(scores, right, labelled)
    others = [offset for joint, offset in enumerate(found.offsets) if joint != 4]
    assert found.offsets[4] == pytest.approx(sum(others) / len(others), abs=1e-3)


def test_a_slope_that_would_turn_the_order_around_is_left_out() -> None:
    scores = torch.linspace(0.02, 0.98, 4000)[:, None].expand(-1, JOINTS)
    # Hill-shaped: surest right in the middle, and least so at 1.
    chances = torch.sigmoid(2 * scores.log() + 0.5 * (1 - scores).log() + 2)
    right = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0)) < chances
    found = fit(scores, right, torch.ones_like(right))
    assert found.slopes[1] == 0
    assert found.slopes[0] > 0.5


def test_scores_that_never_err_give_finite_numbers() -> None:
    scores = torch.linspace(0.1, 0.9, 100)[:, None].expand(-1, JOINTS)
    right = scores > 0.5
    found = fit(scores, right, torch.ones_like(right))
    assert all(map(math.isfinite, (*found.slopes, *found.offsets)))
    assert expected_calibration_error(found(scores).flatten(), right.flatten()) < 0.02


@pytest.mark.parametrize("happened", ["all right", "all wrong", "none labelled"])
def test_without_both_outcomes_there_is_nothing_to_fit(happened: str) -> None:
    right = torch.full((5, JOINTS), happened == "all right")
    labelled = torch.full((5, JOINTS), happened != "none labelled")
    with pytest.raises(CalibrationError, match="some must be right and some wrong"):
        fit(torch.rand(5, JOINTS), right, labelled)


# ---------------------------------------------------------------------------------------- measure


def test_expected_calibration_error_of_known_answers() -> None:
    quarter = torch.full((4,), 0.25), torch.tensor([True, False, False, False])
    assert expected_calibration_error(*quarter) == pytest.approx(0)
    boastful = torch.full((10,), 0.95), torch.arange(10) < 6
    assert expected_calibration_error(*boastful) == pytest.approx(0.35, abs=1e-6)
    both = torch.cat((quarter[0], boastful[0])), torch.cat((quarter[1], boastful[1]))
    assert expected_calibration_error(*both) == pytest.approx(0.35 * 10 / 14, abs=1e-6)


def test_errors_in_opposite_directions_do_not_cancel_across_bins() -> None:
    scores, right = torch.tensor([0.25, 0.75]), torch.tensor([True, False])
    assert expected_calibration_error(scores, right) == pytest.approx(0.75)


def test_the_reliability_curve_has_every_joint_in_one_bin() -> None:
    curve = reliability(torch.tensor([0.0, 0.31, 0.39, 1.0]), torch.tensor([0, 1, 0, 1]).bool())
    assert curve.counts.tolist() == [1, 0, 0, 2, 0, 0, 0, 0, 0, 1]
    assert curve.scores[3] == pytest.approx(0.35)
    assert curve.right[[0, 3, 9]].tolist() == [0, 0.5, 1]
    assert curve.right.isnan().sum() == BINS - 3


def test_area_under_the_curve_of_known_answers() -> None:
    right = torch.tensor([False, False, True, True])
    assert area_under_curve(torch.tensor([0.1, 0.4, 0.35, 0.8]), right) == pytest.approx(0.75)
    assert area_under_curve(torch.full((4,), 0.3), right) == pytest.approx(0.5)
    assert area_under_curve(torch.tensor([0.1, 0.2, 0.3, 0.4]), right) == 1
    assert math.isnan(area_under_curve(torch.rand(4), torch.ones(4).bool()))


# ------------------------------------------------------------------------------------------- data


def person(image: int, box: list[float], area: float = 10_000.0) -> dict[str, Any]:
    """Somebody whose joints all lie at the box's corner, the right ankle not labelled."""
    keypoints = [box[0], box[1], 2] * (JOINTS - 1) + [0, 0, 0]
    return {
        **{"image_id": image, "bbox": box, "area": area},
        **{"keypoints": keypoints, "num_keypoints": JOINTS - 1},
    }


def result(image: int, box: list[float], shifts: list[float], score: float = 0.5) -> dict[str, Any]:
    """Joints to the right of the box's corner by so many pixels each."""
    keypoints = [x for shift in shifts for x in (box[0] + shift, box[1], 0.7)]
    return {"image_id": image, "bbox": box, "score": score, "keypoints": keypoints}


BOX = [10.0, 20.0, 80.0, 160.0]


def test_right_is_within_the_distance_of_similarity_one_half() -> None:
    limits = [2 * sigma * 100 * math.sqrt(2 * math.log(2)) for sigma in OKS_SIGMAS]
    dataset = {"annotations": [person(1, BOX)]}
    inside = outcomes(dataset, [result(1, BOX, [0.99 * limit for limit in limits])])
    outside = outcomes(dataset, [result(1, BOX, [1.01 * limit for limit in limits])])
    assert inside.right[inside.labelled].all()
    assert not outside.right[outside.labelled].any()
    assert inside.labelled.tolist() == [[True] * (JOINTS - 1) + [False]]
    torch.testing.assert_close(inside.scores, torch.full((1, JOINTS), 0.7).double())


def test_results_are_matched_by_their_boxes_and_once() -> None:
    beside = [200.0, 20.0, 80.0, 160.0]
    dataset = {"annotations": [person(1, BOX), person(1, beside, 40_000.0)]}
    near, far = [7.0] * JOINTS, [50.0] * JOINTS
    shifted = [beside[0] + 4, *beside[1:]]
    found = outcomes(
        dataset,
        [
            result(1, BOX, far, 0.3),
            result(1, [0.0, 0.0, 5.0, 5.0], near, 0.99),
            result(1, shifted, near, 0.8),
            result(1, BOX, near, 0.9),
            result(2, BOX, near, 0.9),
        ],
    )
    assert found.scores.shape == (2, JOINTS)
    # Near enough for shoulders, and for the eyes of the larger person.
    assert found.right[:, 5].all()
    assert not found.right[0, 1]
    assert found.right[1, 1]


def test_pictures_are_held_out_by_turns_whatever_their_order() -> None:
    images = [30, 10, 40, 20]
    dataset = {"annotations": [person(image, BOX) for image in images for _ in range(2)]}
    right = [0.0] * JOINTS
    found = outcomes(dataset, [result(image, BOX, right) for image in images for _ in range(2)])
    assert found.held_out.tolist() == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 2


def test_results_of_nobody_are_an_error() -> None:
    with pytest.raises(CalibrationError, match="annotated person"):
        outcomes({"annotations": [person(1, BOX)]}, [result(2, BOX, [0.0] * JOINTS)])


def test_what_is_held_out_is_not_fitted_on() -> None:
    truth = Calibration((1.6, 0.7), OFFSETS)
    scores, right, labelled = drawn(4000, truth)
    held_out = torch.arange(4000) % 2 == 1
    report = calibration.calibrate(
        Outcomes(scores, right, labelled, held_out), Outcomes(scores, right, labelled, held_out)
    )
    assert report.error < 0.02 < 0.03 < report.error_before
    assert report.error_swapped < 0.02
    assert report.error_detected == report.error
    assert report.ranking == pytest.approx(report.ranking_before, abs=0.03)
    assert report.joints == labelled[held_out].sum()

    lied = torch.where(held_out[:, None], ~right, right)
    other = calibration.calibrate(
        Outcomes(scores, lied, labelled, held_out), Outcomes(scores, right, labelled, held_out)
    )
    assert other.calibration == report.calibration
    assert other.error > 0.3
    assert other.error_detected == report.error_detected


def test_the_diagram_is_drawn_and_always_alike(tmp_path: Path) -> None:
    scores, right, _ = drawn(50)
    curve = reliability(scores.flatten(), right.flatten())
    for name in ("one.svg", "two.svg"):
        calibration.draw_reliability({"pct": curve}, tmp_path / name)
    drawing = (tmp_path / "one.svg").read_bytes()
    assert drawing.startswith(b"<?xml")
    assert drawing == (tmp_path / "two.svg").read_bytes()


# ------------------------------------------------------------------------------------------ cards


def test_a_calibration_survives_its_card() -> None:
    found = Calibration((1.5, 0.25), OFFSETS)
    assert Calibration.parse(found.table()) == found
    lists = {name: list(values) for name, values in found.table().items()}
    assert Calibration.parse(lists) == found


GOOD = {"slopes": [1.0, 1.0], "offsets": [0.0] * JOINTS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slopes": [1.0]}, "slopes must be 2 finite numbers"),
        ({"slopes": [1.0, -0.5]}, "slopes must not be negative"),
        ({"slopes": [1.0, math.nan]}, "slopes must be 2 finite numbers"),
        ({"slopes": "steep"}, "slopes must be a list of numbers, not 'steep'"),
        ({"offsets": [0.0] * 16}, "offsets must be 17 finite numbers"),
        ({"offsets": ["0"] * 17}, "offsets must be 17 finite numbers"),
        ({"temperature": 2.0}, "has slopes and offsets"),
    ],
)
def test_a_bad_calibration_in_a_card_is_one_clear_line(
    change: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from app import cli

    lines = [f"{name} = {value!r}" for name, value in (GOOD | change).items()]
    (tmp_path / "catalogue.toml").write_text(
        '[[model]]\nname = "odd"\n[model.architecture]\nrepresentation = "dark"\n'
        'backbone = "regnetx_002"\ninput_size = [64, 64]\n[model.calibration]\n' + "\n".join(lines)
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", tmp_path / "catalogue.toml")
    catalogue._cards.cache_clear()
    try:
        assert cli.main(["models", "list"]) == 2
    finally:
        catalogue._cards.cache_clear()
    [complaint] = capsys.readouterr().err.strip().splitlines()
    assert complaint.startswith("posemux: calibration of odd: ")
    assert message in complaint


@pytest.mark.parametrize("representation", models.REPRESENTATIONS)
def test_the_bundled_models_are_calibrated(representation: str) -> None:
    card = models.card(models.default(representation))
    assert card.scores == "calibrated"
    assert 0 < card.measured["ECE"] <= 0.05
