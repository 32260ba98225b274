from __future__ import annotations

import re
from pathlib import Path

import pytest

import models
from models import catalogue, published, reference
from models.complexity import complexity
from models.heatmap import Heatmap
from models.network import build_representation
from models.skeletons import MPII
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
        for figure, value in card.published.items():
            low, high = (0.55, 0.85) if figure in ("AP", "AR") else (0.85, 0.95)
            assert low < value < high
        assert ("PCKh@0.5" in card.published) == (card.architecture.skeleton == MPII)
        assert (card.url is None) == (card.sha256 == "")
        if card.url is not None:
            assert card.url.startswith("https://")
            assert re.fullmatch("[0-9a-f]{8}", card.sha256)
            assert f"-{card.sha256}_" in card.url


def test_inputs_are_as_the_file_names_say() -> None:
    for card in CARDS.values():
        width, height = card.input_size
        assert card.name.endswith(f"-{height}x{width}")
        sizes = re.findall(r"\d+x\d+", str(card.source).partition(" of ")[0])
        # The files of PCT and ViTPose's authors have no size in their names.
        own = card.name.startswith(("official-swin", "official-pct", "official-vitpose"))
        assert sizes == ([] if own else [f"{height}x{width}"])


def test_dark_models_are_decoded_by_dark_and_blurred_by_their_sigma() -> None:
    """Kernels of 11 (DarkPose's and mmpose's configurations), of 3 for DarkPose's smallest maps."""
    heatmaps = {
        name: build_representation(card.architecture)
        for name, card in CARDS.items()
        if card.representation == "dark"
    }
    for name, decoder in heatmaps.items():
        assert isinstance(decoder, Heatmap)
        udp = "-udp-" in name or "-vitpose-" in name
        unbiased = "-dark-" in name or udp
        assert decoder.method == ("dark" if unbiased else "shift")
        if unbiased:
            assert decoder.blur_kernel == (3 if "128x96" in name else 11)
            mapping = "darkpose" if name.startswith("official") else "affine"
            assert decoder.mapping == ("udp" if udp else mapping)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("hrnet-w32-heatmap@384x288", "hrnet-w33"), "'hrnet-w33'"),
        (("recipe = ", "recipes = "), "recipe"),
        (('authors = "mmpose"', 'author = "mmpose"'), "authors"),
        (('authors = "mmpose"', 'authors = "mmpose-2.x"'), "authors must be one of"),
        (("published = ", "size = 3\npublished = "), "size"),
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
    card = models.card(name)
    assert catalogue.complexity_of(card) == complexity(card)


def test_models_of_one_recipe_cost_the_same_as_it() -> None:
    counted = sum(
        parameter.numel()
        for parameter in without_weights("simba-res50-simcc").module().parameters()
    )
    card = models.card("mmpose-simcc-res50-256x192")
    assert catalogue.complexity_of(card).parameters == counted


def test_every_profile_is_that_of_its_authors() -> None:
    """Colours, padding, rule and the threshold of joints, by the models' names."""
    rules = reference.HEATMAP_RULES.keys() | reference.SIMCC_RULES.keys() | {"pct"}
    for name, card in CARDS.items():
        profile = card.profile
        assert profile.reference in rules
        official = name.startswith("official")
        assert profile.bgr == (official and "-res" in name)
        assert profile.padding == (1.12 if "-pct-" in name else 1.25)
        small = card.input_size[1] < 256
        if "simdr" not in name:
            assert profile.joint_threshold == 0.2
        elif "-sa-" in name or card.input_size[1] > 256:
            assert profile.joint_threshold == 0.005
        else:
            assert profile.joint_threshold == (0.02 if small else 0.01)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("official-hrnet-w32-256x192", "hrnet"),
        ("official-res101-384x288", "hrnet"),
        ("official-mpii-hrnet-w32-256x256", "hrnet"),
        ("official-hrnet-w32-dark-384x288", "darkpose"),
        ("official-simdr-res50-256x192", "simdr"),
        ("official-sa-simdr-w48-384x288", "sa-simdr"),
        ("official-swin-large-256x256", "mmpose-0.x"),
        ("official-pct-swin-base-256x256", "pct"),
        ("mmpose0-res50-256x192", "mmpose-0.x"),
        ("mmpose0-hrnet-w48-dark-256x192", "mmpose-0.x-dark"),
        ("mmpose-res50-256x192", "mmpose"),
        ("mmpose-res50-dark-256x192", "mmpose-dark"),
        ("mmpose-hrnet-w48-udp-256x192", "mmpose-udp"),
        ("mmpose-simcc-res50-384x288", "mmpose-simcc"),
        ("mmpose-rtmpose-m-256x192", "mmpose-simcc"),
        ("mmpose-vitpose-b-256x192", "mmpose-udp"),
        ("official-vitpose-b-256x192", "mmpose-0.x-udp"),
    ],
)
def test_a_profile_names_its_authors_rule(name: str, rule: str) -> None:
    assert models.card(name).profile.reference == rule
