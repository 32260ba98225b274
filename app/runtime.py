"""Which runtime the networks run on: the setting, the device, and what can be converted."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn

from models.runtime import ConversionError, Runner, TorchRunner

_logger = logging.getLogger(__name__)

Choice = Literal["auto", "torch", "openvino"]


class Runtime:
    """Makes runners of networks.

    Args:
        choice: `torch`, `openvino`, or `auto`: OpenVINO on a CPU, for the networks that it can run,
            and else torch.
        device: where the networks are.
        threads: CPU threads that OpenVINO computes with.

    Raises:
        ValueError: OpenVINO is asked for, and is not installed, or the device is not the CPU.
    """

    def __init__(self, choice: Choice, device: torch.device, threads: int = 1) -> None:
        if choice == "openvino" and device.type != "cpu":
            raise ValueError(
                f"POSE_RUNTIME=openvino runs networks on the CPU, not on {device}: "
                "accepted there are auto and torch"
            )
        if choice == "openvino" and find_spec("openvino") is None:
            raise ValueError("POSE_RUNTIME=openvino, but openvino is not installed")
        self._choice = choice
        self._threads = threads
        self._openvino = choice != "torch" and device.type == "cpu"

    def __call__(
        self, name: str, network: nn.Module, example: Tensor, any_size: bool = False
    ) -> Runner:
        """Make a network's runner.

        Args:
            name: what it is called in messages.
            network: ready for inference.
            example: `(2, 3, H, W)` float32 on the CPU: a batch of the kind that it will run.
            any_size: whether height and width may be others than the example's.

        Raises:
            ValueError: OpenVINO was asked for, and cannot run the network.
        """
        if not self._openvino:
            return TorchRunner(network)
        try:
            # Only where it is used: it takes a tenth of a second to import.
            from models.openvino_runtime import OpenVinoRunner

            return OpenVinoRunner(network, example, any_size, self._threads)
        except (ImportError, ConversionError) as error:
            if self._choice == "openvino":
                raise ValueError(f"POSE_RUNTIME=openvino cannot run {name}: {error}") from error
            _logger.warning("%s runs on torch, because OpenVINO cannot run it: %s", name, error)
            return TorchRunner(network)
