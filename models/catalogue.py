"""The catalogue: one card for each pose model, and how a name or a file becomes a pose model."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.calibration import Calibration, CalibrationError
from models.checkpoints import WeightsError, read_architecture, read_checkpoint, rename
from models.complexity import Complexity, complexity
from models.layouts import Nearest, architecture_of, identify
from models.network import REPRESENTATIONS, Architecture
from models.pose_model import Card, PoseModel
from models.training.recipes import RecipeError

#: The bundled weights.
WEIGHTS = Path(__file__).with_name("weights")
#: The cards.
CATALOGUE = Path(__file__).with_name("catalogue.toml")


class UnknownModelError(KeyError):
    """No card has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"unknown pose model {self.name!r}; known are {', '.join(names())}"


@lru_cache
def _cards() -> dict[str, Card]:
    tables = tomllib.loads(CATALOGUE.read_text())
    return {table["name"]: _card(table) for table in tables["model"]}


def _card(table: dict[str, Any]) -> Card:
    """A card from its table.

    Raises:
        ArchitectureError: the architecture has a field missing or one too many.
        CalibrationError: its calibration cannot be used.
    """
    parsed = {**table, "architecture": Architecture.parse(table["architecture"])}
    if "calibration" in table:
        try:
            parsed["calibration"] = Calibration.parse(table["calibration"])
        except CalibrationError as error:
            raise CalibrationError(f"calibration of {table['name']}: {error}") from error
    return Card(**parsed)


def names() -> list[str]:
    """The pose models in the catalogue."""
    return list(_cards())


def card(name: str) -> Card:
    """What is known of a pose model.

    Raises:
        UnknownModelError: the catalogue has no such model.
    """
    try:
        return _cards()[name]
    except KeyError:
        raise UnknownModelError(name) from None


@lru_cache
def complexity_of(name: str) -> Complexity:
    """A pose model's parameters and multiply-adds; counted once, in a fraction of a second.

    Raises:
        UnknownModelError: the catalogue has no such model.
    """
    return complexity(card(name))


def default(representation: str) -> str:
    """The name of the bundled pose model of a representation.

    Raises:
        ValueError: there is no such representation.
    """
    for name, entry in _cards().items():
        if entry.representation == representation:
            return name
    raise ValueError(f"representation must be one of {REPRESENTATIONS}, not {representation!r}")


def load(
    name: str | None = None,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> PoseModel:
    """A pose model, ready for inference.

    Args:
        name: a name in the catalogue, or with weights that of a recipe and its variants; with None
            the layout comes from the weights file, see `models.layouts` for what that cannot tell.
        weights: a local file that replaces the card's own weights, ours or a published checkpoint;
            unless it is the same file, the card's calibration is not for it, and its scores are
            raw.
        device: where it computes.
        dtype: what the network computes in, if not float32; decoding stays in float32.

    Returns:
        The pose model in evaluation mode, all weights loaded: nothing random is left.

    Raises:
        UnknownModelError: neither the catalogue nor the recipes have such a model.
        WeightsError: the file is missing, damaged, or does not fit; or neither a name nor a file
            was given.
    """
    if weights is None:
        if name is None:
            raise WeightsError(f"give a name ({', '.join(names())}) or a weights file")
        chosen = card(name)
        path = WEIGHTS / chosen.weights
        if verify(chosen) is False:
            raise WeightsError(f"{path} is damaged: its sha256 is not {chosen.sha256}")
        model = PoseModel.fresh(chosen).load_weights(path)
    else:
        model = _load_file(name, Path(weights))
    return model.to(device, dtype).eval()


def _load_file(name: str | None, path: Path) -> PoseModel:
    """The pose model of a weights file; see `load`."""
    tensors = read_checkpoint(path)
    if name is not None:
        chosen = _named(name, path)
    elif (architecture := read_architecture(path)) is not None:
        chosen = _unlisted(path, architecture, "which its weights file names")
    else:
        nearest = _identify(path, tensors)
        if nearest.differences:
            raise WeightsError(
                f"{path} has no known layout; the nearest is {nearest.name}, which differs in "
                f"{nearest.differences}"
            )
        chosen = _unlisted(path, nearest.architecture, f"identified as {nearest.name} by its keys")
    if chosen.calibration is not None and _sha256(path) != chosen.sha256:
        chosen = replace(chosen, calibration=None)
    try:
        return PoseModel.fresh(chosen).fill(rename(tensors), path)
    except WeightsError as error:
        nearest = _identify(path, tensors)
        raise WeightsError(f"{error}; the nearest known layout is {nearest.name}") from error


def verify(entry: Card) -> bool | None:
    """Whether a card's weights are the ones that it names; None if they are not on this machine."""
    path = WEIGHTS / entry.weights
    if not path.is_file():
        return None
    return _sha256(path) == entry.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identify(path: Path, tensors: dict[str, Tensor]) -> Nearest:
    """The known layout nearest to a file's; see `identify`."""
    try:
        return identify(tensors, {name: entry.architecture for name, entry in _cards().items()})
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _named(name: str, path: Path) -> Card:
    """The card of a name in the catalogue, or one for a recipe's.

    Raises:
        UnknownModelError: there is neither.
    """
    if name in _cards():
        return _cards()[name]
    try:
        return _unlisted(path, architecture_of(name), f"loaded as {name}")
    except RecipeError as error:
        raise UnknownModelError(name) from error


def _unlisted(path: Path, architecture: Architecture, note: str) -> Card:
    """A card for weights of which only the file is known."""
    return Card(
        name=path.stem,
        architecture=architecture,
        weights=path.name,
        sha256="",
        licence="unknown",
        training_data="unknown",
        note=note,
    )
