"""A larger network that starts by computing what a smaller one computes.

Chen, Goodfellow and Shlens, "Net2Net", ICLR 2016, with zeros where they have copies: channels that
the smaller network lacks are fresh, and none of its own reads them; blocks that it lacks add
nothing to their input. Both then learn as any other weights do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def grow(small: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights for a network from those of a narrower or shallower one of its family.

    A block that the smaller network lacks keeps its fresh weights, and so must be an identity when
    it is fresh: timm's residual networks are, whose blocks end in a normalisation of weight 0.

    Args:
        small: the smaller network's weights, by the names that the network's own have.
        network: the larger one, freshly made.

    Returns:
        All of the network's weights.

    Raises:
        ValueError: a weight is larger in the smaller network, or its groups lie across the
            network's.
    """
    groups = {
        f"{name}.weight": module.groups
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1
    }
    grown = {}
    for name, fresh in network.state_dict().items():
        taken = small.get(name)
        if taken is None or not fresh.ndim:
            grown[name] = fresh if taken is None else taken
        elif name in groups:
            # A grouped convolution has as many channels going in as coming out.
            dense = _embed(name, _dense(taken), _dense(fresh))
            grown[name] = _grouped(name, dense, groups[name])
        else:
            grown[name] = _embed(name, taken, fresh)
    return grown


def _embed(name: str, taken: Tensor, fresh: Tensor) -> Tensor:
    """A copy of fresh weights whose first outputs read what the taken ones read, and no more."""
    if taken.ndim != fresh.ndim or any(map(int.__gt__, taken.shape, fresh.shape)):
        raise ValueError(f"{name} has {tuple(taken.shape)}, which {tuple(fresh.shape)} cannot hold")
    grown = fresh.clone()
    grown[: len(taken)] = 0
    grown[tuple(map(slice, taken.shape))] = taken
    return grown


def _dense(weight: Tensor) -> Tensor:
    """A grouped convolution's `(C, C / G, kH, kW)` as the `(C, C, kH, kW)` of an ungrouped one."""
    channels, width = weight.shape[:2]
    inputs = _inputs(channels, width)
    dense = weight.new_zeros((channels, channels, *weight.shape[2:]))
    return dense.scatter(1, inputs[..., None, None].expand_as(weight), weight)


def _grouped(name: str, dense: Tensor, groups: int) -> Tensor:
    """The inverse of `_dense`."""
    inputs = _inputs(len(dense), len(dense) // groups)
    grouped = dense.gather(1, inputs[..., None, None].expand(-1, -1, *dense.shape[2:]))
    if grouped.count_nonzero() < dense.count_nonzero():
        raise ValueError(f"{name} has groups that lie across those of the larger network")
    return grouped


def _inputs(channels: int, width: int) -> Tensor:
    """`(C, width)`: for each output of a grouped convolution the inputs of its group."""
    return torch.arange(channels)[:, None] // width * width + torch.arange(width)
