"""Which runtime the networks run on, and how exactly: the settings, the device, what there is."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn

from app import cpus
from models.cuda_graphs import GraphRunner, GraphsBySize, buckets
from models.pose_model import PoseModel
from models.quantisation import Ranges
from models.runtime import (
    ConversionError,
    Estimator,
    Runner,
    TorchRunner,
    estimator,
    first_line,
    relative_distance,
)

_logger = logging.getLogger(__name__)

Choice = Literal["auto", "torch", "openvino", "graphs"]
Precision = Literal["auto", "float32", "float16", "int8"]

#: How large a difference of graphs' outputs from PyTorch's own may be, beside the output: of
#: convolutions whose quickest way was chosen anew for each batch size.
_TOLERANCES = {torch.float32: 5e-3, torch.float16: 5e-2}


class Runtime:
    """Makes runners of networks.

    Args:
        choice: `torch`; `openvino`; `graphs`, which is torch in CUDA graphs; or `auto`: OpenVINO on
            a CPU, for the networks that it can run, and else torch.
        device: where the networks are.
        threads: CPU threads that OpenVINO computes with.
        precision: `float32`; `float16`, for a GPU; `int8`, for OpenVINO's convolutions; or `auto`:
            int8 for the networks that have ranges, where the CPU has instructions for it, else
            float32.

    Raises:
        ValueError: OpenVINO is asked for, and is not installed, or the device is not the CPU;
            graphs or float16 are asked for, and it is; or int8 is asked for, and OpenVINO does not
            run here or the CPU has no instructions for it.
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
        for setting, value, asked in (
            ("RUNTIME", "graphs", choice == "graphs"),
            ("PRECISION", "float16", precision == "float16"),
        ):
            if asked and device.type != "cuda":
                raise ValueError(
                    f"POSE_{setting}={value} is for a GPU, and the device is {device}: "
                    "accepted there is auto"
                )
        self._choice = choice
        self._device = device
        #: What the networks' weights are to be, before they are run.
        self.dtype = torch.float16 if precision == "float16" else torch.float32
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
        if self._choice == "graphs":
            return GraphsBySize(network, self._device)
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

    def estimator(
        self, name: str, model: PoseModel, most: int, ranges: Ranges | None = None
    ) -> Estimator:
        """Make what takes a pose model's crops to joints.

        Args:
            name: what it is called in messages.
            model: on its device, ready for inference.
            most: crops in one call.
            ranges: of its network's convolutions, see above.

        Raises:
            ValueError: what was asked for cannot run the network.
        """
        width, height = model.input_size
        if self._choice != "graphs":
            example = torch.zeros(2, 3, height, width)
            return estimator(model, self(name, model.network, example, ranges=ranges))
        compute = estimator(model, TorchRunner(model.network))
        try:
            graphs = GraphRunner(
                compute, (3, height, width), self.dtype, self._device, buckets(most)
            )
            for count in {1, most}:
                noise = torch.rand(count, 3, height, width, device=self._device)
                with torch.inference_mode():
                    [found, _], [expected, _] = graphs(noise), compute(noise)
                if not relative_distance(found, expected) <= _TOLERANCES[self.dtype]:
                    raise RuntimeError("their answers are not those of PyTorch")
        except RuntimeError as error:
            raise ValueError(
                f"POSE_RUNTIME=graphs cannot run {name}: {first_line(error)}"
            ) from error
        return graphs

    def _torch(self, network: nn.Module) -> Runner:
        self.torch_computes = True
        return TorchRunner(network)
