"""Weights of any origin as one of posemux's own files: what is known of them travels along."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from models import sources
from models.catalogue import WEIGHTS_DIR
from models.checkpoints import read_tensors, with_counters
from models.files import replacing
from models.pose_model import Card


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
    model = sources.load(source, layout, weights_dir)
    weights = read_tensors(sources.path_of(source, weights_dir))
    tensors = with_counters(weights, model.module().state_dict())
    card = json.dumps(model.card.table())
    with replacing(path) as draft:
        save_file({key: _apart(value) for key, value in tensors.items()}, draft, {"card": card})
    return model.card


def _apart(tensor: Tensor) -> Tensor:
    """The same numbers in memory of their own, which safetensors wants."""
    return tensor.clone(memory_format=torch.contiguous_format)
