from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from models.backbones import JointTokens, TokenSize
from models.backbones.tokenpose import sine_positions
from models.network import Architecture, ArchitectureError, Network, build_representation
from models.training import recipes

from .recipes_support import without_weights

SIZES = {
    "64x64": (64, 64),
    "128x128": (128, 128),
    "256x192": (192, 256),
    "256x256": (256, 256),
    "384x288": (288, 384),
}


def build(table: dict[str, Any]) -> Network:
    architecture = Architecture.parse(table)
    return Network(architecture, build_representation(architecture))


@pytest.mark.parametrize(
    ("recipe", "sizes"),
    [
        ("simba-res50-heatmap", SIZES),
        ("simba-res50-simcc", SIZES),
        ("res50-simcc-upfree", SIZES),
        ("tokenpose-s-v1-heatmap", SIZES),
        # Of these the extremes: their parts are in the rows above.
        ("hrnet-w32-heatmap", ("64x64", "384x288")),
        ("hrnet-w32-simcc", ("64x64", "384x288")),
        ("tokenpose-s-v1-simcc", ("64x64", "384x288")),
        ("tokenpose-s-v2-heatmap", ("64x64", "384x288")),
        ("swin-base-heatmap", ("256x192", "384x288")),
        ("pct-swin-base", ("64x64",)),
        ("vitpose-s", ("256x192", "384x288")),
    ],
)
def test_every_system_works_at_every_input_size(recipe: str, sizes: Iterable[str]) -> None:
    for name in sizes:
        width, height = SIZES[name]
        variant = recipe if name not in recipes.variants(recipe) else f"{recipe}@{name}"
        read = recipes.read(variant)
        assert isinstance(read, recipes.PoseRecipe)
        table = read.architecture.table() | {"input_size": [width, height]}
        if table["tokens"]:
            # One block does to shapes what twelve do.
            table["tokens"] |= {"blocks": 1}
        with torch.device("meta"):
            raw = build(table).eval()(torch.empty(2, 3, height, width))
        if isinstance(raw, tuple):
            k = table["options"]["k"]
            assert raw[0].shape == (2, 17, int(width * k))
            assert raw[1].shape == (2, 17, int(height * k))
        elif table["representation"] == "pct":
            assert raw.shape == (2, 34, 2048)
        else:
            assert raw.shape == (2, 17, height // 4, width // 4)


@pytest.mark.parametrize(
    "recipe", ["simba-res50-simcc@mpii", "tokenpose-s-v1-heatmap@mpii", "pct-swin-base@mpii"]
)
def test_a_network_has_the_joints_of_its_set(recipe: str) -> None:
    model = without_weights(recipe)
    assert model.input_size == (256, 256)
    with torch.device("meta"):
        decoded = model.representation.decode(model.network(torch.empty(2, 3, 256, 256)))
    assert decoded.shape == (2, 16, 3)


TABLE = {"representation": "dark", "backbone": "regnetx_002", "input_size": [64, 64]}
PATCHES = {"patch_width": 4, "patch_height": 4, "blocks": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "regnet_of_nobody"}, "backbone: "),
        ({"pyramid": 16, "deconvolution": {"width": 8}}, "exclude each other"),
        ({"deconvolution": {"depth": 8}}, "unexpected keyword argument 'depth'"),
        ({"deconvolution": {"kernel": 3}}, "kernel must be 2 or 4, not 3"),
        ({"deconvolution": {"layers": 0}}, "layers must be 1 or more, not 0"),
        ({"backbone": "pose_vit_small", "input_size": [64, 72]}, "64x72 do not divide into"),
        ({"backbone": "pose_vit_small"}, r"stride \[16\], not 4"),
        ({"backbone": "hrnet_stem", "deconvolution": {"width": 8}}, r"stride \[4\], not 32"),
        ({"tokens": PATCHES | {"patch_width": 3}}, "16x16 do not divide into patches of 3x4"),
    ],
)
def test_a_wrong_architecture_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        build(TABLE | change)


def test_pct_has_no_use_for_joint_tokens() -> None:
    recipe = recipes.read("pct-small")
    assert isinstance(recipe, recipes.PoseRecipe)
    table = recipe.architecture.table() | {"pyramid": 0, "tokens": PATCHES}
    with torch.device("meta"), pytest.raises(ArchitectureError, match="pct cannot read joint"):
        build(table)


def test_an_architecture_survives_its_table() -> None:
    for change in ({"deconvolution": {"width": 8, "kernel": 2}}, {"tokens": PATCHES}):
        architecture = Architecture.parse(TABLE | change)
        assert Architecture.parse(architecture.table()) == architecture


def test_joint_tokens_know_where_a_patch_is() -> None:
    torch.manual_seed(0)
    size = TokenSize(patch_width=2, patch_height=2, width=16, blocks=2, heads=2)
    tokens = JointTokens(3, 5, (8, 6), size).eval()
    features = torch.randn(1, 3, 6, 8)
    moved = features.roll(2, -1)
    with torch.inference_mode():
        assert tokens(features).shape == (1, 5, 16)
        assert not torch.allclose(tokens(features), tokens(moved), atol=1e-4)
        # Without positions a transformer sees a set of patches, whatever their order.
        nn.init.zeros_(tokens.positions)
        torch.testing.assert_close(tokens(features), tokens(moved), atol=1e-5, rtol=1e-4)


def test_sine_positions_tell_rows_then_columns() -> None:
    positions = sine_positions(columns=4, rows=3, width=8).unflatten(0, (3, 4))
    assert (positions[:, :1, :4] == positions[..., :4]).all()
    assert (positions[:1, :, 4:] == positions[..., 4:]).all()
    # The last of each axis has come full circle at the first frequency.
    torch.testing.assert_close(positions[-1, 0, :2], torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(positions[0, 0, 4:6], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    assert len(positions.flatten(0, 1).unique(dim=0)) == 12
