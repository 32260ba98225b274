"""How a network runs: one face for PyTorch itself and for what is quicker on some device."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class ConversionError(ValueError):
    """A network that a runtime cannot run: the message says why."""


class Runner(Protocol):
    """A network, run by whatever is quickest."""

    def __call__(self, crops: Tensor) -> Any:
        """Run the network.

        Args:
            crops: `(N, 3, H, W)` normalised, float32, on the network's device; any N from 1.

        Returns:
            What the network itself gives: a tensor or a tuple of tensors, N first.
        """
        ...


class TorchRunner:
    """PyTorch itself, in the type of the network's weights.

    Args:
        network: ready for inference.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._dtype = next(network.parameters()).dtype

    def __call__(self, crops: Tensor) -> Any:
        """Run the network: see `Runner`."""
        return self._network(crops.to(self._dtype))
