"""Networks run by OpenVINO, which takes two fifths to two thirds of PyTorch's time on a CPU.

It computes in float32, and convolutions that round what they see and weigh in whole numbers: see
`models.quantisation`.

Nothing is written to disk, and nothing is reported: OpenVINO's telemetry, which gives the user a
number at import and tells a server what is converted, is kept from being found.
"""

from __future__ import annotations

import sys
import warnings
from collections import deque
from functools import cache
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.quantisation import Ranges, quantised
from models.runtime import ConversionError, first_line, relative_distance

# OpenVINO does without what is not installed; imported by somebody else before, it stays.
sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
import openvino  # noqa: E402
from openvino.frontend import FrontEndManager  # noqa: E402
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: E402
from openvino.preprocess import PrePostProcessor  # noqa: E402

#: Crops in one inference. What eight of them need on the way stays in the CPU's caches: 32 at once
#: take a few percent longer. It also bounds the kernels that OpenVINO keeps, a set for each shape
#: of a batch: where sizes differ, crops go one at a time.
_AT_ONCE = 8
#: Crops that go one at a time do so side by side, as far as there are threads: threads that share
#: one crop wait for each other at each of a detector's many small layers.
_SIDE_BY_SIDE = 8
#: How large an output's difference from PyTorch's may be, beside the output: in float32, and where
#: numbers are rounded on the way, which turns differences of the last digit into whole steps. Of
#: noise, which is what is compared, PCT's then differs by up to a quarter.
_TOLERANCE, _ROUNDED_TOLERANCE = 1e-3, 0.5


class OpenVinoRunner:
    """A network that was converted once: a `Runner`, to be used by one thread.

    Args:
        network: ready for inference on the CPU, in float32 and without gradients. Later changes of
            its weights are not seen.
        example: `(N, 3, H, W)` float32, N from 2: a batch of the kind that it will run.
        any_size: whether height and width may be others than the example's.
        threads: how many compute.
        ranges: of its convolutions, which then compute in eight bits; in float32 if left out.
        weight_bits: of their weights, see `models.quantisation.quantised`.

    Raises:
        ConversionError: OpenVINO does not know all of the network's operations, or gives other
            answers than PyTorch.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        any_size: bool,
        threads: int,
        ranges: Ranges | None = None,
        weight_bits: int = 8,
    ) -> None:
        height, width = (-1, -1) if any_size else example.shape[2:]
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned threads could not make way for those that decode images, nor for a second
            # process, whose threads would be pinned to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            if ranges is not None:
                network = quantised(network, ranges, weight_bits)
            model = _converted(network, example)
            model.reshape([-1, 3, height, width])
            if not all(output.partial_shape[0].is_dynamic for output in model.outputs):
                # To run it on another number of crops would write beyond its memory.
                raise ValueError("tracing fixed the number of crops")
            steps = PrePostProcessor(model)
            # Colours innermost, as crops come, so that nothing is copied on the way in.
            steps.input().tensor().set_layout(openvino.Layout("NHWC"))
            steps.input().model().set_layout(openvino.Layout("NCHW"))
            model = steps.build()
            compiled = _core().compile_model(model, "CPU", settings)
            streams = min(threads, _SIDE_BY_SIDE) if any_size else 1
            self._beside: list[openvino.InferRequest] = []
            if streams > 1:
                many = _core().compile_model(model, "CPU", {**settings, "NUM_STREAMS": streams})
                self._beside = [many.create_infer_request() for _ in range(streams)]
        # Its exceptions, and those of tracing, have no base of their own.
        except Exception as error:
            raise ConversionError(first_line(error)) from error
        self._together = compiled.create_infer_request()
        self._outputs = len(compiled.outputs)
        self._at_once = 1 if any_size else _AT_ONCE
        self._several = True
        self._compare(network, example, any_size, _ROUNDED_TOLERANCE if ranges else _TOLERANCE)

    def __call__(self, crops: Tensor) -> Any:
        """Run the network: see `Runner`."""
        pixels = crops.permute(0, 2, 3, 1).contiguous().numpy()
        starts = range(0, len(pixels), self._at_once)
        waiting = deque(pixels[start : start + self._at_once] for start in starts)
        found: list[tuple[Tensor, ...]] = []
        while self._beside and len(waiting) >= len(self._beside):
            for request in self._beside:
                request.start_async({0: waiting.popleft()}, share_inputs=True)
            found += [self._outputs_of(request) for request in self._beside]
        # Too few for all threads side by side: all threads together.
        for part in waiting:
            self._together.start_async({0: part}, share_inputs=True)
            found.append(self._outputs_of(self._together))
        outputs = found[0] if len(found) == 1 else tuple(map(torch.cat, zip(*found, strict=True)))
        return outputs if self._several else outputs[0]

    def _outputs_of(self, request: openvino.InferRequest) -> tuple[Tensor, ...]:
        request.wait()
        # Copies: the request's own memory is written to again.
        return tuple(
            torch.from_numpy(request.get_output_tensor(index).data.copy())
            for index in range(self._outputs)
        )

    @torch.inference_mode()
    def _compare(
        self, network: nn.Module, example: Tensor, any_size: bool, tolerance: float
    ) -> None:
        """Ask both about a batch of another size than the example's, which tracing may have fixed.

        Raises:
            ConversionError: the answers differ.
        """
        count, colours, height, width = example.shape
        shape = (count + 1, colours, *((width, height) if any_size else (height, width)))
        crops = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        crops = crops.contiguous(memory_format=torch.channels_last)
        expected = network(crops)
        self._several = isinstance(expected, tuple)
        try:
            found = self(crops)
        except RuntimeError as error:
            raise ConversionError(first_line(error)) from error
        if not relative_distance(found, expected) <= tolerance:
            raise ConversionError("OpenVINO's answers are not those of PyTorch")


@cache
def _core() -> openvino.Core:
    """OpenVINO itself: one for the process, which never goes.

    Each that is made gives its thread a stack for signals, and each that goes brings back the stack
    of the one before it, which may be gone as well: the next signal would end the process.
    """
    return openvino.Core()


def _converted(network: nn.Module, example: Tensor) -> openvino.Model:
    with warnings.catch_warnings(), torch.no_grad():
        # PyTorch's about tracing, which OpenVINO still reads best.
        warnings.simplefilter("ignore")
        # A function, since of a module PyTorch first inspects every part, which takes longer than
        # tracing it.
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            lambda crops: network(crops), example, check_trace=False
        )
        decoder = TorchScriptPythonDecoder(traced)
    _, frontend = _frontend()
    return frontend.convert(frontend.load(decoder))


@cache
def _frontend() -> tuple[FrontEndManager, Any]:
    """OpenVINO's reader of PyTorch's networks, and the manager that must outlive it."""
    manager = FrontEndManager()
    return manager, manager.load_by_framework("pytorch")
