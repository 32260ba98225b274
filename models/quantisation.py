"""Convolutions in whole numbers of eight bits: twice as quick on CPUs made for it.

After "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(Jacob et al., CVPR 2018), section 2.1: a real number is `scale * (whole - zero)`. What goes into a
convolution has one scale, from the range that was seen in pictures; each output channel's weights
have their own, symmetric about zero ("Quantizing deep convolutional networks for efficient
inference", Krishnamoorthi 2018, section 3). Nothing is trained anew.

The network stays one of real numbers that are rounded to what eight bits can hold. A runtime that
knows such rounding computes with the whole numbers themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from models.downloads import sha256
from models.files import replacing

#: For each convolution, by its name within the network, the least and the largest number that goes
#: into it.
Ranges = Mapping[str, tuple[float, float]]

#: Steps between the least and the largest number of eight bits.
_STEPS = 255
#: The largest weight of eight bits: -128 stays unused, so that zero is in the middle.
_LARGEST = 127


@contextmanager
def observed(network: nn.Module) -> Iterator[Ranges]:
    """The ranges of all convolutions, which grow with whatever the network sees meanwhile.

    Zero is in each of them: what pads a picture must not be rounded.
    """
    ranges: dict[str, tuple[float, float]] = {}

    def see(name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        least, largest = ranges.get(name, (0.0, 0.0))
        now = inputs[0].aminmax()
        ranges[name] = min(least, float(now.min)), max(largest, float(now.max))

    hooks = [
        convolution.register_forward_pre_hook(partial(see, name))
        for name, convolution in network.named_modules()
        if isinstance(convolution, nn.Conv2d)
    ]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


def quantised(network: nn.Module, ranges: Ranges, weight_bits: int = 8) -> nn.Module:
    """A copy whose convolutions see and weigh with numbers of eight bits only.

    Args:
        network: ready for inference.
        ranges: see `observed`.
        weight_bits: how many of the eight weights take. 7 is for CPUs that keep the sum of two
            products in sixteen bits: they would cut one of 2 * 255 * 127.

    Raises:
        ValueError: the ranges are not those of this network's convolutions.
    """
    network = deepcopy(network)
    convolutions = {
        name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    }
    if unknown := sorted(ranges.keys() - convolutions.keys()):
        raise ValueError(f"it has ranges of another network, which has a {unknown[0]}")
    for name, ends in ranges.items():
        convolution = convolutions[name]
        convolution.register_forward_pre_hook(partial(_round_input, *ends))
        rounded = _RoundedWeights(convolution.weight, 2 ** (weight_bits - 1) - 1)
        register_parametrization(convolution, "weight", rounded)
    return network


def _round_input(
    least: float, largest: float, _: nn.Module, inputs: tuple[Tensor]
) -> tuple[Tensor]:
    scale = max(largest - least, 1e-12) / _STEPS
    zero = round(-least / scale)
    return (torch.fake_quantize_per_tensor_affine(inputs[0], scale, zero, 0, _STEPS),)


class _RoundedWeights(nn.Module):
    """Weights `(out, in, h, w)` as eight bits hold them, each output channel by its largest one.

    Args:
        weights: what is rounded.
        largest: what the largest one of each channel becomes.
    """

    def __init__(self, weights: Tensor, largest: int) -> None:
        super().__init__()
        scales = weights.detach().abs().amax((1, 2, 3)).clamp_min(1e-12) / largest
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int32))

    def forward(self, weights: Tensor) -> Tensor:
        scales, zeros = cast(Tensor, self.scales), cast(Tensor, self.zeros)
        # Within the ends of eight bits whatever is used of them: what runtimes know.
        return torch.fake_quantize_per_channel_affine(
            weights, scales, zeros, 0, -_LARGEST, _LARGEST
        )


def ranges_path(weights: Path) -> Path:
    """Where the ranges of a weights file are kept: beside it, whatever format it has."""
    return weights.with_suffix(".int8.json")


def read_ranges(weights: Path) -> Ranges | None:
    """The ranges that are kept beside a weights file, or None where there are none.

    Raises:
        ValueError: they are of other weights, or cannot be read.
    """
    path = ranges_path(weights)
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text())
        ranges = {
            name: (float(least), float(most)) for name, (least, most) in kept["ranges"].items()
        }
        owner = kept["sha256"]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no ranges: {error!r}") from error
    if owner != sha256(weights):
        raise ValueError(f"{path} is of other weights than {weights.name}: quantise them anew")
    return ranges


def write_ranges(weights: Path, ranges: Ranges) -> Path:
    """Keep the ranges beside a weights file.

    Returns:
        The file that was written.

    Raises:
        OSError: it cannot be written.
    """
    rounded = {name: [float(f"{end:.4g}") for end in ends] for name, ends in ranges.items()}
    path = ranges_path(weights)
    with replacing(path) as draft:
        draft.write_text(json.dumps({"sha256": sha256(weights), "ranges": rounded}))
    return path
