"""ViTPose's published layouts fit our networks, which compute what their authors' do.

No layout of ViTPose is in ../shared/reference. Names, shapes and the order of computation are
written down here a second time, from `ViT` and `TopdownHeatmapSimpleHead` of
ViTAE-Transformer/ViTPose, and from mmpose's td-hm_ViTPose-* with mmpretrain's `VisionTransformer`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import models
from models import catalogue
from models.checkpoints import rename
from models.complexity import Complexity, complexity
from models.layouts import identify
from models.pose_model import PoseModel
from models.training.loop import card_of

from .recipes_support import random_weights, read, without_weights

#: Width, blocks and heads: `embed_dim`, `depth` and `num_heads` of ViTPose_*_coco_256x192.py.
SIZES = {"s": (384, 12, 12), "b": (768, 12, 12), "l": (1024, 24, 16), "h": (1280, 32, 16)}
#: Patches of 16 pixels of 256x192.
PATCHES = 16 * 12


class Names(NamedTuple):
    """What the parts are called by their publishers."""

    patch: str
    block: str
    norm: str
    hidden: str
    output: str
    last: str
    head: str


NAMES = {
    "authors": Names(
        "patch_embed.proj", "blocks", "norm", "mlp.fc1", "mlp.fc2", "last_norm", "keypoint_head"
    ),
    "mmpose": Names(
        "patch_embed.projection", "layers", "ln", "ffn.layers.0.0", "ffn.layers.1", "ln1", "head"
    ),
}

Shapes = dict[str, tuple[int, ...]]


def layout(
    publisher: str, size: str, simple: bool, joints: int = 17, patches: int = PATCHES
) -> Shapes:
    """A published file's keys and shapes."""
    names, (width, blocks, _) = NAMES[publisher], SIZES[size]
    weights: Shapes = {f"backbone.{names.patch}": (width, 3, 16, 16)}
    norms: Shapes = {f"backbone.{names.last}": (width,)}
    for block in (f"backbone.{names.block}.{index}." for index in range(blocks)):
        weights |= {
            block + "attn.qkv": (3 * width, width),
            block + "attn.proj": (width, width),
            block + names.hidden: (4 * width, width),
            block + names.output: (width, 4 * width),
        }
        norms |= {block + names.norm + number: (width,) for number in "12"}
    head = f"{names.head}."
    weights[head + "final_layer"] = (joints, width, 3, 3) if simple else (joints, 256, 1, 1)
    shapes: Shapes = {"backbone.pos_embed": (1, patches + 1, width)}
    if publisher == "mmpose":
        shapes["backbone.cls_token"] = (1, 1, width)
    if not simple:
        for place, inputs in ((0, width), (3, 256)):
            shapes[f"{head}deconv_layers.{place}.weight"] = (inputs, 256, 4, 4)
            norm = f"{head}deconv_layers.{place + 1}"
            norms[norm] = (256,)
            shapes |= {f"{norm}.running_{kind}": (256,) for kind in ("mean", "var")}
            shapes[f"{norm}.num_batches_tracked"] = ()
    for name, shape in {**weights, **norms}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def without_numbers(shapes: Shapes) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def random(shapes: Shapes) -> dict[str, Tensor]:
    """Embeddings are small, or the norms' epsilon would not matter."""
    weights = random_weights(shapes)
    return {key: 0.02 * value if "_embed" in key else value for key, value in weights.items()}


def heatmaps(weights: dict[str, Tensor], publisher: str, heads: int, crop: Tensor) -> Tensor:
    """The forward pass, from the papers' equations and the publishers' code."""
    names = NAMES[publisher]

    def both(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    def normalised(x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
        weight, bias = both(name)
        return (x - mean) / (variance + 1e-6).sqrt() * weight + bias

    def projected(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, *both(name))

    maps = functional.conv2d(crop, *both(f"backbone.{names.patch}"), stride=16, padding=2)
    people, width, rows, columns = maps.shape
    x = maps.flatten(2).transpose(1, 2)
    positions = weights["backbone.pos_embed"]
    x = x + positions[:, 1:]
    if publisher == "authors":
        x = x + positions[:, :1]
    index = 0
    while f"backbone.{names.block}.{index}.attn.qkv.weight" in weights:
        block = f"backbone.{names.block}.{index}."
        mixed = projected(normalised(x, block + names.norm + "1"), block + "attn.qkv")
        queries, keys, values = (
            part.unflatten(2, (heads, -1)).transpose(1, 2) for part in mixed.chunk(3, -1)
        )
        attention = (queries @ keys.transpose(2, 3) / math.sqrt(width / heads)).softmax(-1)
        seen = (attention @ values).transpose(1, 2).flatten(2)
        x = x + projected(seen, block + "attn.proj")
        hidden = projected(normalised(x, block + names.norm + "2"), block + names.hidden)
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + projected(hidden, block + names.output)
        index += 1
    x = normalised(x, f"backbone.{names.last}")
    maps = x.transpose(1, 2).reshape(people, width, rows, columns)
    head = f"{names.head}."
    if f"{head}deconv_layers.0.weight" not in weights:
        size = (4 * rows, 4 * columns)
        maps = functional.interpolate(maps.relu(), size=size, mode="bilinear", align_corners=False)
        return functional.conv2d(maps, *both(head + "final_layer"), padding=1)
    for place in (0, 3):
        maps = functional.conv_transpose2d(
            maps, weights[f"{head}deconv_layers.{place}.weight"], stride=2, padding=1
        )
        norm = f"{head}deconv_layers.{place + 1}"
        mean, variance = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        maps = functional.batch_norm(maps, mean, variance, *both(norm)).relu()
    return functional.conv2d(maps, *both(head + "final_layer"))


@pytest.mark.parametrize("decoder", ["", "@simple"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("publisher", NAMES)
def test_a_published_layout_fits_key_for_key(publisher: str, size: str, decoder: str) -> None:
    theirs = rename(without_numbers(layout(publisher, size, bool(decoder))))
    ours = without_weights(f"vitpose-{size}{decoder}").module().state_dict()
    assert {key: value.shape for key, value in theirs.items()} == {
        key: value.shape for key, value in ours.items()
    }


@pytest.mark.parametrize(
    ("publisher", "size", "simple", "joints", "name"),
    [
        ("authors", "s", False, 17, "vitpose-s"),
        ("authors", "s", True, 17, "vitpose-s@simple"),
        ("authors", "s", False, 16, "vitpose-s@mpii"),
        ("mmpose", "b", True, 17, "vitpose-b@simple"),
        ("mmpose", "l", False, 17, "vitpose-l"),
    ],
)
def test_a_published_layout_is_identified(
    publisher: str, size: str, simple: bool, joints: int, name: str
) -> None:
    found = identify(without_numbers(layout(publisher, size, simple, joints)), {})
    assert (found.name, found.differences) == (name, "")
    assert found.architecture.options["method"] == "dark"


@pytest.mark.parametrize("decoder", ["", "@simple"])
@pytest.mark.parametrize("publisher", NAMES)
def test_the_network_computes_what_the_publishers_does(publisher: str, decoder: str) -> None:
    """ViTPose-S as it is, on a crop of few patches."""
    architecture = replace(read(f"vitpose-s{decoder}").architecture, input_size=(32, 64))
    weights = random(layout(publisher, "s", bool(decoder), patches=8))
    model = PoseModel.fresh(card_of("vit", architecture)).fill(rename(weights), Path("vit")).eval()
    crop = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        found = model.network(crop)
        expected = heatmaps(weights, publisher, SIZES["s"][2], crop)
    assert found.shape == (2, 17, 16, 8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))


def cost(size: str, simple: bool) -> Complexity:
    """Parameters, from the layout, and multiply-adds, by hand."""
    width, blocks, _ = SIZES[size]
    shapes = layout("authors", size, simple)
    trained = sum(math.prod(shape) for key, shape in shapes.items() if ".running_" not in key)
    # The class token's position is none of ours; a batch counter is no parameter.
    trained -= width + sum(key.endswith("num_batches_tracked") for key in shapes)
    linear = PATCHES * (16 * 16 * 3 * width + blocks * 12 * width**2)
    attention = blocks * 2 * PATCHES**2 * width
    if simple:
        head = 16 * PATCHES * width * 17 * 9
    else:
        head = PATCHES * 16 * 256 * (width + 4 * 256) + 16 * PATCHES * 256 * 17
    return Complexity(trained, linear + attention + head)


@pytest.mark.parametrize("size", SIZES)
def test_listed_costs_are_those_of_the_layout(size: str) -> None:
    assert catalogue.complexity_of(models.card(f"mmpose-vitpose-{size}-256x192")) == cost(
        size, False
    )
    simple = models.card(f"mmpose-vitpose-{size}-simple-256x192")
    assert catalogue.complexity_of(simple) == cost(size, True)


@pytest.mark.parametrize("decoder", ["", "@simple"])
def test_counted_costs_are_those_of_the_layout(decoder: str) -> None:
    counted = complexity(card_of("vit", read(f"vitpose-s{decoder}").architecture))
    assert counted == cost("s", bool(decoder))


def saved(shapes: Shapes, folder: Path) -> Path:
    """A file as mmcv writes it, of zeros that take no room."""
    path = folder / "vitpose.pth"
    weights = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    positions = torch.ones(shapes["backbone.pos_embed"])
    positions[:, 1:] = 2
    weights["backbone.pos_embed"] = positions
    torch.save({"meta": {"epoch": 210}, "state_dict": weights}, path)
    return path


@pytest.mark.parametrize(("publisher", "expected"), [("authors", 3), ("mmpose", 2)])
def test_a_file_loads_with_and_without_a_name(
    publisher: str, expected: float, tmp_path: Path
) -> None:
    path = saved(layout(publisher, "s", False), tmp_path)
    named = models.load("vitpose-s", path)
    assert named.input_size == (192, 256)
    unnamed = models.load(weights=path)
    assert unnamed.card.architecture == named.card.architecture
    for model in (named, unnamed):
        positions = model.network.state_dict()["backbone.pos_embed"]
        assert positions.shape == (1, PATCHES, 384)
        assert (positions == expected).all()


def test_positions_without_a_class_tokens_are_taken_as_they_are() -> None:
    """As mmpretrain writes them since its first release."""
    positions = torch.randn(1, PATCHES, 384)
    assert rename({"backbone.pos_embed": positions})["network.backbone.pos_embed"] is positions


def test_the_heads_of_other_sets_are_left_out() -> None:
    """ViTPose trained on COCO, AI Challenger and MPII together has a head for each."""
    shapes = layout("authors", "s", False)
    other = {
        key.replace("keypoint_head.", "associate_keypoint_heads.0."): value
        for key, value in shapes.items()
        if key.startswith("keypoint_head.")
    }
    file = without_numbers({**shapes, **other, "backbone.cls_token": (1, 1, 384)})
    assert rename(file).keys() == rename(without_numbers(shapes)).keys()


def test_what_is_missing_or_of_another_kind_is_named(tmp_path: Path) -> None:
    shapes = layout("authors", "s", True)
    del shapes["backbone.last_norm.bias"]
    # ViTPose+ keeps a part of each block's last layer for each set that it was trained on.
    shapes["backbone.blocks.0.mlp.fc2.weight"] = (288, 1536)
    shapes["backbone.blocks.0.mlp.experts.0.weight"] = (96, 1536)
    with pytest.raises(
        models.WeightsError,
        match=r"^[^\n]*nearest is vitpose-s@simple, which differs in 3 keys, "
        r"network\.backbone\.blocks\.0\.mlp\.experts\.0\.weight: \(96, 1536\) in the file, "
        r"nothing wanted; network\.backbone\.blocks\.0\.mlp\.fc2\.weight: \(288, 1536\) in the "
        r"file, \(384, 1536\) wanted; network\.backbone\.norm\.bias: nothing in the file, "
        r"\(384,\) wanted$",
    ):
        models.load(weights=saved(shapes, tmp_path))
    with pytest.raises(
        models.WeightsError,
        match=r"does not fit vitpose: 11 keys, network\.deconvolution\.0\.weight: nothing in the "
        r"file[^\n]*; the nearest known layout is vitpose-s@simple$",
    ):
        models.load("vitpose-s", saved(layout("authors", "s", True), tmp_path))


@pytest.mark.parametrize("shape", [(), (193,), (1, 2, 3, 4)])
def test_positions_of_no_known_shape_are_an_error(shape: tuple[int, ...], tmp_path: Path) -> None:
    weights = {
        key: torch.zeros(()).expand(size) for key, size in layout("authors", "s", False).items()
    }
    weights["backbone.pos_embed"] = torch.zeros(shape)
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(models.WeightsError, match=r"differs in 1 keys, [^\n]*pos_embed: "):
        models.load(weights=tmp_path / "odd.pth")
