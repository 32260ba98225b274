"""The networks of recipes, built once for all tests, and numbers for published layouts."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from models.pose_model import PoseModel
from models.skeletons import MPII
from models.training import recipes
from models.training.loop import card_of
from models.training.recipes import DetectorRecipe, PoseRecipe, TokenizerRecipe


def read(name: str) -> PoseRecipe | TokenizerRecipe:
    """A recipe that has a pose network."""
    recipe = recipes.read(name)
    assert not isinstance(recipe, DetectorRecipe)
    return recipe


@lru_cache
def without_weights(name: str) -> PoseModel:
    """A recipe's pose model on the meta device: keys, shapes and graph without numbers."""
    architecture = read(name).architecture
    if "@mpii" in name:
        # As training does when it sees the set.
        architecture = replace(architecture, joints=MPII.names)
    with torch.device("meta"):
        return PoseModel.fresh(card_of(name, architecture))


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Numbers at which nothing vanishes and nothing is spared."""
    torch.manual_seed(0)
    weights = {key: torch.randn(shape) * 0.1 for key, shape in shapes.items()}
    for key, value in weights.items():
        if key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
            weights[key] = 1 + value.abs()
    return weights
