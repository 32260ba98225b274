from __future__ import annotations

import re
from pathlib import Path

import pytest

import models
from models import catalogue, published
from models.complexity import complexity
from models.heatmap import Heatmap
from models.network import build_representation
from tests.models.recipes_support import without_weights

CARDS = {name: card for name, (card, _) in published.read().items()}


def test_published_cards_say_where_weights_are_from() -> None:
    assert CARDS
    assert CARDS.keys() == set(models.names()) - set(catalogue.bundled())
    assert len({card.weights for card in CARDS.values()}) == len(CARDS)
    for card in CARDS.values():
        assert card.licence
        assert card.training_data
        assert card.source
        assert 0.6 < card.published["AP"] < 0.8
        assert (card.url is None) == (card.sha256 == "")
        if card.url is not None:
            assert card.url.startswith("https://")
            assert re.fullmatch("[0-9a-f]{8}", card.sha256)
            assert f"-{card.sha256}_" in card.url


def test_inputs_are_as_the_file_names_say() -> None:
    for card in CARDS.values():
        width, height = card.input_size
        assert card.name.endswith(f"-{height}x{width}")
        sizes = re.findall(r"\d+x\d{3}", str(card.source))
        # The files of PCT and ViTPose's authors have no size in their names.
        own = card.name.startswith(("official-swin", "official-vitpose"))
        assert sizes == ([] if own else [f"{height}x{width}"])


def test_dark_models_are_decoded_by_dark_and_blurred_by_their_sigma() -> None:
    """Kernels of 11 and 17 for sigma 2 and 3 (mmpose's td-hm_*_dark configurations)."""
    heatmaps = {
        name: build_representation(card.architecture)
        for name, card in CARDS.items()
        if card.representation == "dark"
    }
    for name, decoder in heatmaps.items():
        assert isinstance(decoder, Heatmap)
        assert decoder.method == ("dark" if "-dark-" in name or "-vitpose-" in name else "shift")
        if decoder.method == "dark":
            assert decoder.blur_kernel == {2.0: 11, 3.0: 17}[decoder.sigma]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("hrnet-w32-heatmap@384x288", "hrnet-w33"), "'hrnet-w33'"),
        (("recipe = ", "recipes = "), "recipe"),
        (("options = ", "option = "), "option"),
    ],
)
def test_an_entry_that_cannot_be_read_is_named(
    change: tuple[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "published.toml"
    wrong.write_text(published.PUBLISHED.read_text().replace(*change, 1))
    monkeypatch.setattr(published, "PUBLISHED", wrong)
    with pytest.raises(ValueError, match=rf"published\.toml: .*{message}"):
        published.read()


@pytest.mark.parametrize("name", ["mmpose-hrnet-w32-256x192", "official-sa-simdr-w48-384x288"])
def test_costs_are_those_that_are_counted(name: str) -> None:
    assert catalogue.complexity_of(name) == complexity(models.card(name))


def test_models_of_one_recipe_cost_the_same_as_it() -> None:
    counted = sum(
        parameter.numel()
        for parameter in without_weights("simba-res50-simcc").module().parameters()
    )
    assert catalogue.complexity_of("mmpose-simcc-res50-256x192").parameters == counted


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("official-res50-256x192", "BGR"),
        ("mmpose-hrnet-w48-udp-256x192", "UDP"),
        ("official-vitpose-b-256x192", "UDP"),
    ],
)
def test_a_model_of_another_input_is_not_loaded_by_its_name(name: str, reason: str) -> None:
    with pytest.raises(models.WeightsError, match=f"{name} cannot be loaded by its name.*{reason}"):
        models.load(name)
