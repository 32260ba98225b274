"""Which runtime the networks run on, and how exactly: the settings, the device, what there is."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn

from app import cpus
from models.quantisation import Ranges
from models.runtime import ConversionError, Runner, TorchRunner

_logger = logging.getLogger(__name__)

Choice = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "float32", "int8"]


class Runtime:
    """Makes runners of networks.

    Args:
        choice: `torch`, `openvino`, or `auto`: OpenVINO on a CPU, for the networks that it can run,
            and else torch.
        device: where the networks are.
        threads: CPU threads that OpenVINO computes with.
        precision: `float32`; `int8`, for OpenVINO's convolutions; or `auto`: int8 for the networks
            that have ranges, where the CPU has instructions for it, else float32.

    Raises:
        ValueError: OpenVINO is asked for, and is not installed, or the device is not the CPU; or
            int8 is asked for, and OpenVINO does not run here or the CPU has no instructions for it.
    """

    def __init__(
        self,
        choice: Choice,
        device: torch.device,
        threads: int = 1,
        precision: Precision = "auto",
    ) -> None:
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
        self._precision = precision
        #: Whether any network was left to PyTorch.
        self.torch_computes = False
        may_round = self._openvino and precision != "float32"
        self._weight_bits = cpus.weight_bits() if may_round else 0
        if precision == "int8" and not self._weight_bits:
            raise ValueError(
                "POSE_PRECISION=int8 takes OpenVINO, and a CPU with AVX2 or VNNI instructions: "
                "accepted here are auto and float32"
            )

    def __call__(
        self,
        name: str,
        network: nn.Module,
        example: Tensor,
        any_size: bool = False,
        ranges: Ranges | None = None,
    ) -> Runner:
        """Make a network's runner.

        Args:
            name: what it is called in messages.
            network: ready for inference.
            example: `(2, 3, H, W)` float32 on the CPU: a batch of the kind that it will run.
            any_size: whether height and width may be others than the example's.
            ranges: of its convolutions, if they are known and it may compute in int8.

        Raises:
            ValueError: OpenVINO or int8 was asked for, and cannot run the network.
        """
        if self._precision == "int8" and ranges is None:
            raise ValueError(
                f"POSE_PRECISION=int8, but the ranges of {name} are not known: `posemux quantise` "
                "measures them; accepted without them are auto and float32"
            )
        if not self._openvino:
            return self._torch(network)
        if not self._weight_bits:
            ranges = None
        try:
            # Only where it is used: it takes a tenth of a second to import.
            from models.openvino_runtime import OpenVinoRunner

            return OpenVinoRunner(
                network, example, any_size, self._threads, ranges, self._weight_bits
            )
        except (ImportError, ConversionError) as error:
            if ranges is not None and self._precision == "int8":
                raise ValueError(f"POSE_PRECISION=int8 cannot run {name}: {error}") from error
            if ranges is not None:
                _logger.warning("%s runs in float32, not in int8: %s", name, error)
                return self(name, network, example, any_size)
            if self._choice == "openvino":
                raise ValueError(f"POSE_RUNTIME=openvino cannot run {name}: {error}") from error
            _logger.warning("%s runs on torch, because OpenVINO cannot run it: %s", name, error)
            return self._torch(network)

    def _torch(self, network: nn.Module) -> Runner:
        self.torch_computes = True
        return TorchRunner(network)
