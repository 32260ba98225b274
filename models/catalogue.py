"""The catalogue: one card for each pose model, and how a name or a file becomes a pose model."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from models import published
from models.calibration import Calibration, CalibrationError
from models.checkpoints import (
    WeightsError,
    differences,
    read_checkpoint,
    read_metadata,
    read_tensors,
    rename,
)
from models.complexity import Complexity, complexity
from models.downloads import sha256
from models.layouts import TOKENIZER, architecture_of, identify, identify_tokenizer
from models.network import REPRESENTATIONS, Architecture, build_representation
from models.pct import PCT, Tokenizer
from models.pose_model import Card, PoseModel
from models.profiles import Authors, authors_of
from models.training.recipes import RecipeError

#: The bundled weights.
WEIGHTS = Path(__file__).with_name("weights")
#: Where weights lie that were fetched.
WEIGHTS_DIR = Path("~/.cache/posemux")
#: The cards of the bundled models.
CATALOGUE = Path(__file__).with_name("catalogue.toml")


class UnknownModelError(KeyError):
    """No card has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"unknown pose model {self.name!r}; known are {', '.join(bundled())} "
            f"and those of `posemux models list`"
        )


@lru_cache
def _cards() -> dict[str, Card]:
    tables = tomllib.loads(CATALOGUE.read_text())
    cards = {table["name"]: _card(table) for table in tables["model"]}
    return cards | {name: entry for name, (entry, _) in _published().items()}


@lru_cache
def _published() -> dict[str, tuple[Card, Complexity]]:
    return published.read()


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
    """The pose models in the catalogue, the bundled ones first."""
    return list(_cards())


def bundled() -> list[str]:
    """The pose models whose weights come with posemux."""
    return [name for name, entry in _cards().items() if entry.bundled]


def card(name: str) -> Card:
    """What is known of a pose model.

    Raises:
        UnknownModelError: the catalogue has no such model.
    """
    try:
        return _cards()[name]
    except KeyError:
        raise UnknownModelError(name) from None


def complexity_of(entry: Card) -> Complexity:
    """A pose model's parameters and multiply-adds; those of a published one are known.

    All others are counted, once for each architecture.
    """
    known = _published().get(entry.name)
    if known is not None and known[0].architecture == entry.architecture:
        return known[1]
    return _counted(json.dumps(entry.architecture.table()))


@lru_cache
def _counted(table: str) -> Complexity:
    architecture = Architecture.parse(json.loads(table))
    return complexity(Card("", architecture, "", "", "", "", ""))


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
    weights_dir: Path = WEIGHTS_DIR,
) -> PoseModel:
    """A pose model, ready for inference.

    Args:
        name: a name in the catalogue, or with weights that of a recipe and its variants; with None
            the layout comes from the weights file, see `models.layouts` for what that cannot tell.
        weights: a local file that replaces the card's own weights, ours or a published checkpoint;
            unless it is the same file, the card's calibration is not for it, and its scores are
            raw. How it is fed follows from the card, or without one from its keys: see
            `models.profiles`.
        device: where it computes.
        dtype: what the network computes in, if not float32; decoding stays in float32.
        weights_dir: where published weights were fetched to; nothing is fetched here.

    Returns:
        The pose model in evaluation mode, all weights loaded: nothing random is left.

    Raises:
        UnknownModelError: neither the catalogue nor the recipes have such a model.
        WeightsError: the file is missing, damaged, or does not fit, or is PCT's tokenizer alone; or
            neither a name nor a file was given.
    """
    if weights is None:
        if name is None:
            raise WeightsError(f"give a name ({', '.join(bundled())}) or a weights file")
        chosen = card(name)
        path = require(chosen, weights_dir)
        _check(chosen, path)
        model = PoseModel.fresh(chosen).load_weights(path)
    else:
        model = _load_file(name, Path(weights))
    return model.to(device, dtype).eval()


def load_tokenizer(weights: str | Path, device: str | torch.device = "cpu") -> Tokenizer:
    """PCT's tokenizer alone, as stage I of its training leaves it: poses to tokens and back.

    Args:
        weights: a local file, of a training by posemux or published by PCT's authors, with image
            guidance or without.
        device: where it computes.

    Returns:
        The tokenizer in evaluation mode, all weights loaded.

    Raises:
        WeightsError: the file is missing or damaged, or holds something else or less.
    """
    path = Path(weights)
    tensors = read_tensors(path)
    others = sorted(key for key in tensors if not key.startswith(TOKENIZER))
    if others:
        raise WeightsError(
            f"{path} is not PCT's tokenizer alone: it has {len(others)} other keys, {others[0]}"
        )
    if metadata := read_metadata(path):
        architecture, layout = _architecture(metadata, path), "which its weights file names"
    else:
        nearest = identify_tokenizer(tensors)
        architecture, layout = nearest.architecture, f"of {nearest.name}, the nearest known one"
    part = nn.ModuleDict({"representation": cast(PCT, build_representation(architecture))})
    if unlike := differences(tensors, part.state_dict()):
        raise WeightsError(f"{path} does not fit the tokenizer {layout}: {unlike}")
    part.load_state_dict(tensors)
    tokenizer = cast(PCT, part["representation"]).tokenizer
    return tokenizer.to(device).eval().requires_grad_(False)


def _load_file(name: str | None, path: Path) -> PoseModel:
    """The pose model of a weights file; see `load`."""
    tensors = read_checkpoint(path)
    try:
        renamed = rename(tensors)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    if renamed and all(key.startswith(TOKENIZER) for key in renamed):
        raise WeightsError(
            f"{path} is PCT's tokenizer alone, which sees no pictures: stage II of its training "
            "starts from it (a recipe's `tokenizer`), and models.load_tokenizer reads it"
        )
    authors = authors_of(tensors)
    if name is not None:
        chosen = _named(name, path, authors)
    elif metadata := read_metadata(path):
        chosen = _described(metadata, path, authors)
    else:
        nearest = identify(tensors, _bundled())
        if nearest.differences:
            raise WeightsError(
                f"{path} has no known layout; the nearest is {nearest.name}, which differs in "
                f"{nearest.differences}"
            )
        note = f"identified as {nearest.name} by its keys"
        chosen = _unlisted(path, nearest.architecture, authors, note)
    if name is not None and chosen.calibration is not None and sha256(path) != chosen.sha256:
        chosen = replace(chosen, calibration=None)
    try:
        return PoseModel.fresh(chosen).fill(renamed, path)
    except WeightsError as error:
        nearest = identify(tensors, _bundled())
        raise WeightsError(f"{error}; the nearest known layout is {nearest.name}") from error


def path_of(entry: Card, weights_dir: Path = WEIGHTS_DIR) -> Path:
    """Where a card's weights lie, or would lie if they were fetched."""
    return (WEIGHTS if entry.bundled else weights_dir.expanduser()) / entry.weights


def verify(entry: Card, weights_dir: Path = WEIGHTS_DIR) -> bool | None:
    """Whether a card's weights are the ones that it names; None if they are not on this machine."""
    path = path_of(entry, weights_dir)
    if not path.is_file():
        return None
    return sha256(path).startswith(entry.sha256)


def require(entry: Card, weights_dir: Path = WEIGHTS_DIR) -> Path:
    """Where a card's weights lie.

    Raises:
        WeightsError: they are not on this machine, or cannot be loaded by the card's name.
    """
    path = path_of(entry, weights_dir)
    if not entry.bundled and not path.is_file():
        raise WeightsError(
            f"{path} is missing: `posemux models fetch {entry.name}` gets it, from {entry.source}"
        )
    return path


def _check(entry: Card, path: Path) -> None:
    """Whether a card's own weights are the ones that it names.

    Raises:
        WeightsError: they are not.
    """
    if path.is_file() and not sha256(path).startswith(entry.sha256):
        raise WeightsError(f"{path} is damaged: its sha256 is not {entry.sha256}")


def _bundled() -> dict[str, Architecture]:
    """The architectures of the bundled models, which layouts are compared with first."""
    return {name: card(name).architecture for name in bundled()}


def _named(name: str, path: Path, authors: Authors | None) -> Card:
    """The card of a name in the catalogue, or one for a recipe's.

    Raises:
        UnknownModelError: there is neither.
    """
    if name in _cards():
        return _cards()[name]
    try:
        return _unlisted(path, architecture_of(name), authors, f"loaded as {name}")
    except RecipeError as error:
        raise UnknownModelError(name) from error


def _described(metadata: dict[str, Any], path: Path, authors: Authors | None) -> Card:
    """The card of weights that posemux wrote.

    Raises:
        WeightsError: it cannot be used.
    """
    if "card" not in metadata:
        architecture = _architecture(metadata, path)
        return _unlisted(path, architecture, authors, "as its weights file says")
    here = {"name": path.stem, "weights": path.name, "sha256": ""}
    try:
        return _card(metadata["card"] | here)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} says of itself what cannot be used: {error}") from error


def _architecture(metadata: dict[str, Any], path: Path) -> Architecture:
    """The architecture that weights which posemux wrote are of.

    Raises:
        WeightsError: it cannot be used.
    """
    try:
        return Architecture.parse(metadata["architecture"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} says of itself what cannot be used: {error}") from error


def _unlisted(path: Path, architecture: Architecture, authors: Authors | None, note: str) -> Card:
    """A card for weights of which only the file is known."""
    return Card(
        name=path.stem,
        architecture=architecture,
        weights=path.name,
        sha256="",
        licence="unknown",
        training_data="unknown",
        note=note,
        authors=authors,
    )
