"""The catalogue: one card for each pose model, and how a name or a file becomes a pose model."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from models import published
from models.calibration import Calibration, CalibrationError
from models.complexity import Complexity, complexity
from models.downloads import sha256
from models.network import REPRESENTATIONS, Architecture
from models.pose_model import Card, PoseModel, WeightsError, read_architecture, read_tensors

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


@lru_cache
def complexity_of(name: str) -> Complexity:
    """A pose model's parameters and multiply-adds; a bundled one's are counted once.

    Raises:
        UnknownModelError: the catalogue has no such model.
    """
    entry = card(name)
    return complexity(entry) if entry.bundled else _published()[name][1]


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
        name: a name in the catalogue; with None the layout comes from the weights file.
        weights: a local `.safetensors` file that replaces the card's own weights; unless it is the
            same file, the card's calibration is not for it, and its scores are raw.
        device: where it computes.
        dtype: what the network computes in, if not float32; decoding stays in float32.
        weights_dir: where published weights were fetched to; nothing is fetched here.

    Returns:
        The pose model in evaluation mode, all weights loaded: nothing random is left.

    Raises:
        UnknownModelError: the catalogue has no such model.
        WeightsError: the file is missing, damaged, or does not fit; the model's input needs what
            is not done here; or neither a name nor a file was given.
    """
    if name is None and weights is None:
        raise WeightsError(f"give a name ({', '.join(bundled())}) or a weights file")
    path = Path(weights) if weights is not None else path_of(card(str(name)), weights_dir)
    chosen = card(name) if name is not None else _identify(path)
    if weights is None:
        _check(chosen, path)
    if weights is not None and path.is_file() and sha256(path) != chosen.sha256:
        chosen = replace(chosen, calibration=None)
    return PoseModel.fresh(chosen).load_weights(path).to(device, dtype).eval()


def path_of(entry: Card, weights_dir: Path = WEIGHTS_DIR) -> Path:
    """Where a card's weights lie, or would lie if they were fetched."""
    return (WEIGHTS if entry.bundled else weights_dir.expanduser()) / entry.weights


def verify(entry: Card, weights_dir: Path = WEIGHTS_DIR) -> bool | None:
    """Whether a card's weights are the ones that it names; None if they are not on this machine."""
    path = path_of(entry, weights_dir)
    if not path.is_file():
        return None
    return sha256(path).startswith(entry.sha256)


def _check(entry: Card, path: Path) -> None:
    """Whether a card's own weights may be loaded from there.

    Raises:
        WeightsError: they may not.
    """
    if entry.unsupported is not None:
        raise WeightsError(
            f"{entry.name} cannot be loaded by its name yet: {entry.unsupported}; "
            f"its file can be loaded as weights=, and fed with what it wants"
        )
    if not entry.bundled and not path.is_file():
        raise WeightsError(
            f"{path} is missing: `posemux models fetch {entry.name}` gets it, from {entry.source}"
        )
    if path.is_file() and not sha256(path).startswith(entry.sha256):
        raise WeightsError(f"{path} is damaged: its sha256 is not {entry.sha256}")


def _identify(path: Path) -> Card:
    """The card of a file's layout: what the file says itself, else whose keys and shapes it has.

    Raises:
        WeightsError: no layout fits; the nearest is named.
    """
    found = replace(
        next(iter(_cards().values())),
        name=path.stem,
        weights=path.name,
        sha256="",
        licence="unknown",
        training_data="unknown",
        note="identified from its weights file",
        epochs=0,
        measured={},
        calibration=None,
    )
    architecture = read_architecture(path)
    if architecture is not None:
        return replace(found, architecture=architecture)
    shapes = {key: tensor.shape for key, tensor in read_tensors(path).items()}
    layouts = {name: _layout(name) for name in bundled()}
    for name, layout in layouts.items():
        if layout == shapes:
            return replace(found, architecture=card(name).architecture)
    nearest = max(layouts, key=lambda name: len(layouts[name].items() & shapes.items()))
    differing = sorted(dict(layouts[nearest].items() ^ shapes.items()))
    raise WeightsError(
        f"{path} has no known layout; the nearest is {nearest}, which differs in {len(differing)} "
        f"keys: {', '.join(differing[:3])}"
    )


@lru_cache
def _layout(name: str) -> dict[str, torch.Size]:
    """The keys and shapes of a card's weights, without making any."""
    with torch.device("meta"):
        model = PoseModel.fresh(card(name))
    return {key: tensor.shape for key, tensor in model.module().state_dict().items()}
