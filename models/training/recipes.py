"""Recipes: everything that decides a training, as a small TOML file, checked before it starts.

A recipe says what it changes of another: `extends = "NAME"` takes over that one's keys, table by
table, and the recipe's own go on top; only the sets of `train` are taken over all together or not
at all. What several recipes may change alike is a variant: the table `variants.NAME` holds such
changes under a name, and `RECIPE@NAME@NAME` lays them on the recipe, in that order. Variants are
taken over with the rest.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from models.network import Architecture, ArchitectureError
from models.training.people import Augmentation

#: The recipes that come with posemux, by name.
FOLDER = Path(__file__).with_name("recipes")

T = TypeVar("T")

Optimizer = Literal["adamw", "adam"]

Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class RecipeError(ValueError):
    """A recipe that cannot be trained: the message names the file, the key and what is accepted."""


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own learning rate schedule.

    Args:
        epochs: how many.
        learning_rate: the peak; a warm-up leads to it and a cosine away from it.
        input_size: width and height, where it differs from the network's own: a fully convolutional
            network learns faster on small crops first.
        frozen: whether only the head learns.
        milestones: epochs of the stage after which the learning rate falls to a tenth, in place of
            the cosine.
    """

    epochs: Count
    learning_rate: Rate
    input_size: tuple[Count, Count] | None = None
    frozen: bool = False
    milestones: tuple[int, ...] = ()


@dataclass(frozen=True)
class PoseRecipe:
    """A pose network's training.

    Args:
        name: the pose model's name.
        architecture: what is trained.
        train: sets and the share of each that an epoch sees.
        validate: the set that the weights are chosen on.
        stages: one after the other.
        batch: people in a step, on all devices together.
        optimizer: `adamw` or `adam`.
        weight_decay: the optimizer's.
        ema: how much of the averaged weights survives a step.
        seed: of everything random.
        start: the recipe, or the weights file, whose backbone, neck and maps it starts from.
        grow: whether the start's network may be smaller; see `models.training.growing`.
        tokenizer: PCT's: the recipe whose result, or the weights file, the tokenizer comes from.
        augmentation: how samples are varied.
        validate_every: epochs between two validations.
    """

    name: str
    architecture: Architecture
    train: Annotated[dict[str, Share], Field(min_length=1)]
    validate: str
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    batch: Count = 64
    optimizer: Optimizer = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    ema: Share = 0.998
    seed: Annotated[int, Field(ge=0)] = 0
    start: str | None = None
    grow: bool = False
    tokenizer: str | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    validate_every: Count = 2


@dataclass(frozen=True)
class TokenizerRecipe:
    """PCT's stage I: poses without pictures.

    Args:
        name: the result's name.
        architecture: the PCT network that the tokenizer is for.
        poses: the file of poses in the data folder, `NAME.npz` with COCO's joints, or a set.
        validate: the set whose poses the reconstruction error is measured on.
        epochs: how many.
        learning_rate: the peak.
        batch: poses in a step.
        weight_decay: AdamW's.
        drop: how often a visible joint is hidden from the encoder.
        seed: of everything random.
        augmentation: how poses are varied; colour and cut-out do not apply.
    """

    name: str
    architecture: Architecture
    poses: str
    validate: str
    epochs: Count
    learning_rate: Rate = 0.002
    batch: Count = 512
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    drop: Share = 0.2
    seed: Annotated[int, Field(ge=0)] = 0
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class DetectorRecipe:
    """A person detector's training by ultralytics, in stages that each start from the last.

    Args:
        name: the result's name.
        architecture: an ultralytics model file such as `yolo11n.yaml`.
        train: the sets to train on.
        validate: the set that is measured.
        size: the picture size in pixels that the detector is used at.
        common: ultralytics' training arguments for all stages.
        stages: those that differ by stage.
    """

    name: str
    architecture: str
    train: tuple[str, ...]
    validate: str
    size: int
    common: dict[str, Any]
    stages: tuple[dict[str, Any], ...]


Recipe = PoseRecipe | TokenizerRecipe | DetectorRecipe

_KINDS: dict[str, type[PoseRecipe | TokenizerRecipe | DetectorRecipe]] = {
    "pose": PoseRecipe,
    "pct-tokenizer": TokenizerRecipe,
    "detector": DetectorRecipe,
}


def names() -> list[str]:
    """The recipes that come with posemux, without their variants."""
    return sorted(path.stem for path in FOLDER.rglob("*.toml"))


def variants(recipe: str) -> list[str]:
    """The variants that may follow a recipe's name, each after an `@`.

    Raises:
        RecipeError: there is no such recipe.
    """
    path = _locate(recipe, Path())
    return list(_variants(_table(path), path))


def read(recipe: str) -> Recipe:
    """A recipe by its name, or from a TOML file; either may be followed by variants.

    Raises:
        RecipeError: there is no such recipe or variant, or a key is missing or unknown.
    """
    name, *chosen = recipe.split("@")
    path = _locate(name, Path())
    table = _table(path)
    known = _variants(table, path)
    for variant in chosen:
        if variant not in known:
            raise RecipeError(
                f"{path} has no variant {variant!r}; known are {', '.join(known) or 'none'}"
            )
        table = _laid_on(table, known[variant])
    if chosen:
        table["name"] = "@".join((str(table.get("name")), *chosen))
    kind = table.pop("kind", None)
    if kind not in _KINDS:
        raise RecipeError(f"{path}: kind must be one of {', '.join(_KINDS)}, not {kind!r}")
    _check_keys(_KINDS[kind], table, path)
    try:
        if kind != "detector":
            table["architecture"] = Architecture.parse(table.get("architecture", {}))
            table["augmentation"] = _build(Augmentation, table.get("augmentation", {}), path)
        if kind == "pose":
            stages = table.get("stages")
            if isinstance(stages, list):
                table["stages"] = [_build(Stage, stage, path) for stage in stages]
    except ArchitectureError as error:
        raise RecipeError(f"{path}: {error}") from error
    return _build(_KINDS[kind], table, path)


def _locate(recipe: str, folder: Path) -> Path:
    """The file of a recipe: one that comes with posemux by its name, another by its path."""
    if recipe.endswith(".toml"):
        path: Path | None = folder / recipe
    else:
        path = next((file for file in FOLDER.rglob("*.toml") if file.stem == recipe), None)
    if path is None or not path.is_file():
        raise RecipeError(f"no recipe {recipe!r}: give a TOML file or one of {', '.join(names())}")
    return path


def _table(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's table, laid on that of the recipe that it extends."""
    if path in above:
        raise RecipeError(f"{path}: extends itself")
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: {error}") from error
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise RecipeError(f"{path}: extends must be the name or the file of a recipe, not {base!r}")
    return _laid_on(_table(_locate(base, path.parent), (*above, path)), table)


def _variants(table: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The variants of a recipe's table, which are taken out of it."""
    found = table.pop("variants", {})
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise RecipeError(f"{path}: variants must be a table of tables, not {found!r}")
    return found


def _laid_on(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both tables' keys; tables in both are laid on each other, of all else the upper one stays."""
    both = {
        key: _laid_on(below[key], value)
        for key, value in above.items()
        if key != "train" and isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **both}


def _build(kind: type[T], table: dict[str, Any], path: Path) -> T:
    """A dataclass of a table whose values have the types that its fields say."""
    _check_keys(kind, table, path)
    try:
        return TypeAdapter(kind).validate_python(table)
    except ValidationError as error:
        [problem, *_] = error.errors()
        key = ".".join(str(part) for part in problem["loc"])
        told = "" if problem["type"] == "missing" else f", not {problem['input']!r}"
        raise RecipeError(f"{path}: {key}: {problem['msg']}{told}") from error


def _check_keys(kind: type[Any], table: dict[str, Any], path: Path) -> None:
    if not isinstance(table, dict):
        raise RecipeError(f"{path}: {kind.__name__.lower()} must be a table, not {table!r}")
    known = sorted(entry.name for entry in dataclasses.fields(kind))
    unknown = sorted(table.keys() - set(known))
    if unknown:
        raise RecipeError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
