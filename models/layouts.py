"""Which network a weights file without a name is of, by its keys and shapes.

Several published models are equal in keys and shapes and differ in meaning. Then the file cannot
say which one it is, and what is taken is:

* the size 256x192 of heatmap networks of HRNet and ResNets, which run at any size (384x288, 64x64
  and 128x128 are published too); MPII's 16 joints come at 256x256, and Swin at 256x256; ViTPose's
  positions tell that it runs at 256x192;
* decoding by DARK, whose Taylor step also helps maps that were trained without it; so are UDP's
  checkpoints;
* SimDR (`equal`) for SimCC in the names of its authors, whose scores then order people rightly even
  if the file is a SimDR*; Gaussian targets for it in mmpose's names. Positions are the same.

To say otherwise, `models.load` takes a name: a recipe's with its variants, such as
`hrnet-w32-heatmap@384x288@dark` or `hrnet-w48-simcc` for a SimDR*.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor

from models.backbones import build_backbone
from models.checkpoints import differences, differing, rename, with_counters
from models.network import Architecture, build_representation
from models.pct import PCT
from models.pose_model import Card, PoseModel
from models.skeletons import MPII
from models.training import recipes
from models.training.recipes import DetectorRecipe, RecipeError

#: The published heatmap networks by their recipes, the usual input size; so on below.
_HEATMAP = (
    *("hrnet-w32-heatmap", "hrnet-w48-heatmap"),
    *("simba-res50-heatmap", "simba-res101-heatmap", "simba-res152-heatmap"),
    *("swin-base-heatmap", "swin-large-heatmap", "swin-huge-heatmap"),
)
_SIMCC = (
    *("hrnet-w32-simcc", "hrnet-w48-simcc"),
    *("simba-res50-simcc", "simba-res101-simcc", "simba-res152-simcc"),
)
_UPSAMPLING_FREE = ("res50-simcc-upfree", "res101-simcc-upfree", "res152-simcc-upfree")
_RTMPOSE = ("rtmpose-t", "rtmpose-s", "rtmpose-m", "rtmpose-l")
_PCT = ("pct-swin-base", "pct-swin-large", "pct-swin-huge")
_VITPOSE = ("vitpose-s", "vitpose-b", "vitpose-l", "vitpose-h")
_TOKENPOSE = ("tokenpose-s-v1-heatmap", "tokenpose-s-v2-heatmap")

#: Recipes with variants whose networks have a layout of their own. The head of SimCC tells the size
#: of the input and k.
PUBLISHED: tuple[str, ...] = (
    *(recipe + variants for recipe in _HEATMAP for variants in ("@dark", "@mpii@dark")),
    *(
        recipe + variants
        for recipe in _SIMCC
        for variants in (
            *("@equal", "@equal@384x288", "@384x288@k1.5"),
            *("@equal@128x128", "@equal@64x64", "@equal@mpii"),
        )
    ),
    *(
        recipe + variants
        for recipe in _UPSAMPLING_FREE
        for variants in ("@equal", "@equal@128x128", "@equal@64x64")
    ),
    "mobilenetv2-simcc",
    *(recipe + variants for recipe in _RTMPOSE for variants in ("", "@384x288")),
    *(recipe + variants for recipe in _PCT for variants in ("@guided", "")),
    *(recipe + variants for recipe in _VITPOSE for variants in ("", "@simple", "@mpii")),
    *_TOKENPOSE,
)

#: How the keys of PCT's tokenizer begin.
TOKENIZER = "representation.tokenizer."

#: A layout: tensors without numbers.
Layout = dict[str, Tensor]


@lru_cache
def architecture_of(recipe: str) -> Architecture:
    """The architecture of a recipe, with the joints of the set that it is validated on.

    Raises:
        RecipeError: there is no such recipe of a pose network.
    """
    found = recipes.read(recipe)
    if isinstance(found, DetectorRecipe):
        raise RecipeError(f"{recipe} is no recipe of a pose network")
    if found.validate.startswith("mpii/"):
        return replace(found.architecture, joints=MPII.names)
    return found.architecture


class Nearest(NamedTuple):
    """The known layout nearest to a file's."""

    #: Of a known layout, or one of `PUBLISHED`.
    name: str
    architecture: Architecture
    #: What of the file does not fit; empty if it is of that layout.
    differences: str


def identify(tensors: Mapping[str, Tensor], known: Mapping[str, Architecture]) -> Nearest:
    """The layout of a file; of several that fit the first, or as this module's text says.

    Args:
        tensors: the file's, under its own keys; only their shapes are looked at.
        known: more layouts, by name; they come before the published ones.

    Raises:
        WeightsError: see `rename`.
    """
    layouts = {**known, **{name: architecture_of(name) for name in PUBLISHED}}
    renamed = rename(tensors)
    prefix = "network.backbone."
    part = {key: value for key, value in renamed.items() if key.startswith(prefix)}
    # There are few backbones: the heads are compared on the nearest one alone.
    sizes = {entry.backbone: entry.input_size for entry in layouts.values()}
    backbone = _nearest(part, ((name, _backbone(name, sizes[name], prefix)) for name in sizes))
    name = _nearest(
        renamed,
        ((name, layout_of(entry)) for name, entry in layouts.items() if entry.backbone == backbone),
    )
    layout = layout_of(layouts[name])
    unlike = differences(with_counters(renamed, layout), layout)
    if "@equal" in name and any(key.startswith("backbone.") for key in tensors):
        name = name.replace("@equal", "")
        return Nearest(name, architecture_of(name), unlike)
    return Nearest(name, layouts[name], unlike)


def identify_tokenizer(tensors: Mapping[str, Tensor]) -> Nearest:
    """The layout of a file of PCT's tokenizer alone; see `identify`.

    Without image guidance the tokenizers of all backbones are one layout, and the first is named.

    Args:
        tensors: the file's, under the keys of `PoseModel.module()`.
    """
    layouts = {name: _tokenizer(name) for name in PUBLISHED if name.startswith(_PCT)}
    name = _nearest(tensors, layouts.items())
    return Nearest(name, architecture_of(name), differences(tensors, layouts[name]))


def _nearest(tensors: Mapping[str, Tensor], layouts: Iterable[tuple[str, Layout]]) -> str:
    """The name of the first layout that fits, else of the one with the fewest differences."""
    unlike: dict[str, int] = {}
    for name, layout in layouts:
        unlike[name] = len(differing(with_counters(tensors, layout), layout))
        if not unlike[name]:
            return name
    return min(unlike, key=lambda name: unlike[name])


@lru_cache
def _backbone(name: str, input_size: tuple[int, int], prefix: str) -> Layout:
    with torch.device("meta"):
        built, _ = build_backbone(name, input_size)
    return {prefix + key: value for key, value in built.state_dict().items()}


@lru_cache
def _tokenizer(recipe: str) -> Layout:
    with torch.device("meta"):
        tokenizer = cast(PCT, build_representation(architecture_of(recipe))).tokenizer
    return {TOKENIZER + key: value for key, value in tokenizer.state_dict().items()}


def layout_of(architecture: Architecture) -> Layout:
    """The layout of an architecture, without making any weights."""
    return _layout(json.dumps(architecture.table()))


@lru_cache
def _layout(table: str) -> Layout:
    architecture = Architecture.parse(json.loads(table))
    with torch.device("meta"):
        return PoseModel.fresh(Card("", architecture, "", "", "", "", "")).module().state_dict()
