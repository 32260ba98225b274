"""Weights of any origin as one of posemux's own files: what is known of them travels along."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from models import catalogue
from models.catalogue import WEIGHTS_DIR
from models.checkpoints import WeightsError, read_tensors, with_counters
from models.files import replacing
from models.pose_model import Card, PoseModel


def load(source: str, layout: str | None = None, weights_dir: Path = WEIGHTS_DIR) -> PoseModel:
    """A pose model of a name in the catalogue, or else of a weights file.

    Args:
        source: the name, or the file's path.
        layout: what a file is of, where several fit: see `models.load`.
        weights_dir: where published weights were fetched to.

    Raises:
        UnknownModelError: there is no such layout.
        WeightsError: it is neither, or the weights cannot be used; or a name has a layout besides.
    """
    if source not in catalogue.names():
        return catalogue.load(layout, _file(source))
    if layout is not None:
        raise WeightsError(f"{source} is a pose model's name: only a file takes a layout")
    return catalogue.load(source, weights_dir=weights_dir)


def _file(source: str) -> Path:
    if not Path(source).is_file():
        raise WeightsError(f"{source} is neither a file nor a pose model of `posemux models list`")
    return Path(source)


def convert(
    source: str, path: Path, layout: str | None = None, weights_dir: Path = WEIGHTS_DIR
) -> Card:
    """Write a pose model's weights as safetensors, each in its own precision, with their card.

    Loaded from there the model gives the same answers, calibrated scores included.

    Args:
        source: a name in the catalogue, or a weights file of any container.
        path: the file to write; it is there as a whole or not at all.
        layout: what a file is of, where several fit: see `models.load`.
        weights_dir: where published weights were fetched to.

    Returns:
        What is known of the weights.

    Raises:
        OSError: the file cannot be written.
        UnknownModelError: there is no such layout.
        WeightsError: the weights cannot be used.
    """
    model = load(source, layout, weights_dir)
    listed = source in catalogue.names()
    weights = catalogue.path_of(model.card, weights_dir) if listed else Path(source)
    tensors = with_counters(read_tensors(weights), model.module().state_dict())
    card = json.dumps(model.card.table())
    with replacing(path) as draft:
        save_file({key: _apart(value) for key, value in tensors.items()}, draft, {"card": card})
    return model.card


def _apart(tensor: Tensor) -> Tensor:
    """The same numbers in memory of their own, which safetensors wants."""
    return tensor.clone(memory_format=torch.contiguous_format)
