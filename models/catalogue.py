"""The catalogue: one card for each pose model, and how a name or a file becomes a pose model."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from models.calibration import Calibration, CalibrationError
from models.checkpoints import WeightsError, read_architecture, read_tensors
from models.complexity import Complexity, complexity
from models.network import REPRESENTATIONS, Architecture
from models.pose_model import Card, PoseModel

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
        name: a name in the catalogue; with None the layout comes from the weights file.
        weights: a local `.safetensors` file that replaces the card's own weights; unless it is the
            same file, the card's calibration is not for it, and its scores are raw.
        device: where it computes.
        dtype: what the network computes in, if not float32; decoding stays in float32.

    Returns:
        The pose model in evaluation mode, all weights loaded: nothing random is left.

    Raises:
        UnknownModelError: the catalogue has no such model.
        WeightsError: the file is missing, damaged, or does not fit; or neither a name nor a file
            was given.
    """
    if name is None and weights is None:
        raise WeightsError(f"give a name ({', '.join(names())}) or a weights file")
    path = Path(weights) if weights is not None else WEIGHTS / card(str(name)).weights
    chosen = card(name) if name is not None else _identify(path)
    if weights is None and verify(chosen) is False:
        raise WeightsError(f"{path} is damaged: its sha256 is not {chosen.sha256}")
    if weights is not None and path.is_file() and _sha256(path) != chosen.sha256:
        chosen = replace(chosen, calibration=None)
    return PoseModel.fresh(chosen).load_weights(path).to(device, dtype).eval()


def verify(entry: Card) -> bool | None:
    """Whether a card's weights are the ones that it names; None if they are not on this machine."""
    path = WEIGHTS / entry.weights
    if not path.is_file():
        return None
    return _sha256(path) == entry.sha256


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    layouts = {name: _layout(name) for name in names()}
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
