"""A pose model by its name in the catalogue, or by the path of a weights file of anybody's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from models import catalogue
from models.catalogue import WEIGHTS_DIR
from models.checkpoints import WeightsError, differences, read_metadata
from models.downloads import sha256
from models.layouts import layout_of
from models.pose_model import Card, PoseModel

#: How the names of weights files end: safetensors, and what `torch.save` writes.
SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".ckpt", ".bin")


def is_file(source: str) -> bool:
    """Whether a source is a file's path and no name: it has a folder, or ends as weights do."""
    return source.endswith(SUFFIXES) or any(mark in source for mark in ("/", os.sep))


def absolute(source: str) -> str:
    """The same source for somebody in another folder."""
    return str(Path(source).expanduser().absolute()) if is_file(source) else source


def describe(source: str) -> Card:
    """What is known of a pose model.

    Of a file it is what travels in it, else what its keys tell. It goes by the file's name, and its
    sha256 is the file's. A file is read as a whole, once for as long as it does not change.

    Args:
        source: a name in the catalogue, or a file's path: see `is_file`.

    Raises:
        UnknownModelError: the catalogue has no such model.
        WeightsError: the file is missing, damaged or of something else, or its keys are those of
            several published models that differ in meaning.
    """
    if not is_file(source):
        return catalogue.card(source)
    path = Path(source)
    try:
        seen = path.stat()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    return _of_file(path, (seen.st_mtime_ns, seen.st_size))


def load(source: str, layout: str | None = None, weights_dir: Path = WEIGHTS_DIR) -> PoseModel:
    """A pose model, ready for inference on the CPU.

    Args:
        source: a name in the catalogue, or else a file's path, whatever it is called.
        layout: what a file is of, where several fit: see `models.load`.
        weights_dir: where published weights were fetched to.

    Raises:
        UnknownModelError: there is no such layout.
        WeightsError: it is neither, or the weights cannot be used; or a name has a layout besides.
    """
    if source not in catalogue.names():
        if not Path(source).is_file():
            raise WeightsError(
                f"{source} is neither a file nor a pose model of `posemux models list`"
            )
        return catalogue.load(layout, source)
    if layout is not None:
        raise WeightsError(f"{source} is a pose model's name: only a file takes a layout")
    return catalogue.load(source, weights_dir=weights_dir)


def path_of(source: str, weights_dir: Path = WEIGHTS_DIR) -> Path:
    """Where the weights of a name or a file lie, or would lie if they were fetched."""
    if source not in catalogue.names():
        return Path(source)
    return catalogue.path_of(catalogue.card(source), weights_dir)


@lru_cache
def _of_file(path: Path, _: tuple[int, int]) -> Card:
    """The card of a file as it was written at that time, with so many bytes."""
    model = catalogue.load(weights=path)
    if not read_metadata(path):
        alike = _alike(model.card, model.module().state_dict())
        if len(alike) > 1:
            raise WeightsError(
                f"{path} may be {' or '.join(alike)}, whose keys are the same: say which with "
                f"`posemux models convert {path} --layout NAME --out FILE.safetensors`, and take "
                "the file that it writes"
            )
    return replace(model.card, sha256=sha256(path))


def _alike(card: Card, tensors: Mapping[str, Tensor]) -> list[str]:
    """Published models, one for each meaning, of whose layout and authors a file is."""
    meanings: dict[str, str] = {}
    for name in catalogue.names():
        other = catalogue.card(name)
        same = (other.authors, other.backbone) == (card.authors, card.backbone)
        if same and not differences(tensors, layout_of(other.architecture)):
            meanings.setdefault(json.dumps(other.architecture.table()), name)
    return list(meanings.values())
