"""How large a pose network is and what one crop costs it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.pose_model import Card, PoseModel


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a pose model.

    Args:
        parameters: of the network and, of PCT, its tokenizer; buffers such as a codebook and
            running statistics do not count.
        macs: multiply-adds of one crop.
    """

    parameters: int
    macs: int

    @property
    def gmacs(self) -> float:
        """Thousand million multiply-adds of one crop, to three decimals."""
        return round(self.macs / 1e9, 3)


def complexity(card: Card) -> Complexity:
    """Count, without weights and without computing anything.

    A multiply-add is one operation, as in the literature's "GFLOPs". PyTorch's own counter knows
    convolutions, linear layers, matrix products and attention; normalisation, activations and
    interpolation are not counted, as everywhere. Decoding counts where it has weights of its own.

    Args:
        card: says what to build; its weights need not be there.
    """
    with torch.device("meta"):
        model = PoseModel.fresh(card).eval()
        width, height = model.input_size
        crop = torch.empty(1, 3, height, width)
    with FlopCounterMode(display=False) as counter:
        raw = model.network(crop)
        if isinstance(model.representation, nn.Module):
            model.representation.decode(raw)
    parameters = sum(parameter.numel() for parameter in model.module().parameters())
    return Complexity(parameters, counter.get_total_flops() // 2)
