"""CUDA graphs: a network's kernels recorded once for each batch size, and launched as one.

A small network has hundreds of kernels that take microseconds each, less than the host needs to
launch them. A graph is launched at once. It is bound to its shapes and addresses, so there is one
for each of a few batch sizes, the buckets, all of which read the same memory; a batch is filled up
to the next of them. See "CUDA Graphs" in PyTorch's notes on CUDA semantics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from models.runtime import TorchRunner

#: Calls before a capture: PyTorch's notes have three. The first fills caches and chooses kernels.
_WARM_UP = 3


def buckets(largest: int) -> tuple[int, ...]:
    """The batch sizes that are captured: 1, 2, 4, 8, 16, 24 and so on, and the largest.

    Raises:
        ValueError: the largest is not at least 1.
    """
    if largest < 1:
        raise ValueError(f"the largest batch must be at least 1, not {largest}")
    return (*(size for size in (1, 2, 4, *range(8, largest, 8)) if size < largest), largest)


def bucket_of(count: int, sizes: tuple[int, ...]) -> int:
    """The smallest of the ascending sizes that holds so many.

    Raises:
        ValueError: there are none, or too many.
    """
    if not 1 <= count <= sizes[-1]:
        raise ValueError(f"a batch must have 1 to {sizes[-1]} rows, not {count}")
    return next(size for size in sizes if size >= count)


class GraphRunner:
    """Runs a computation on CUDA by replaying its graphs.

    What is computed of one row of the batch must not depend on the others, as is so of a network in
    evaluation, since the rows that fill up a bucket hold what an earlier batch left there. It must
    neither wait for the device nor copy between it and the host, and what it keeps from one call to
    the next must stay where it is for as long as this runner lives: a graph reads addresses.

    One thread may use it, on one stream.

    Args:
        compute: a batch to tensors, in whatever tuples, all with one row for each of the batch's;
            for instance a network and its representation's decoding.
        shape: of one row, `(3, height, width)`.
        dtype: what `compute` is given, whatever a batch comes in.
        device: a CUDA device; `compute` has its weights there.
        sizes: the batch sizes to capture, ascending; batches beyond the last are computed in parts.
    """

    @torch.inference_mode()
    def __init__(
        self,
        compute: Callable[[Tensor], Any],
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        sizes: tuple[int, ...] = buckets(128),
    ) -> None:
        self._sizes = sizes
        # Colours innermost, as crops come and as networks want them.
        self._batch = torch.zeros((sizes[-1], *shape), dtype=dtype, device=device).contiguous(
            memory_format=torch.channels_last
        )
        capture = _Capture(device)
        # The largest first: the others find room in the memory that it has left in the pool.
        self._graphs = {
            size: capture(compute, self._batch[:size]) for size in reversed(self._sizes)
        }

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Any:
        """Compute a batch.

        Args:
            batch: `(N, *shape)` of any float type, on the device; N is at least 1.

        Returns:
            What `compute` returns, N rows. Unless it was computed in parts these are views into
            memory that the next call writes to: use them before, on the same stream.

        Raises:
            ValueError: the batch is empty.
        """
        largest = self._sizes[-1]
        if len(batch) > largest:
            starts = range(0, len(batch), largest)
            first, *rest = (
                tree_map(Tensor.clone, self(batch[start : start + largest])) for start in starts
            )
            return tree_map(lambda *column: torch.cat(column), first, *rest)
        replay, outputs = self._graphs[bucket_of(len(batch), self._sizes)]
        # Also converts: one kernel for both.
        self._batch[: len(batch)].copy_(batch)
        replay()
        return tree_map(lambda output: output[: len(batch)], outputs)


class GraphsBySize:
    """A network's graphs for pictures of several sizes: a `Runner`.

    A size's graphs are captured when its first picture comes, which then takes a moment. Of many
    sizes the first few get graphs, and the others none: each keeps memory for good.

    Args:
        network: takes its weights' type.
        device: a CUDA device, where the weights are.
        most: how many sizes get graphs.
        sizes: as of `GraphRunner`.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        most: int = 8,
        sizes: tuple[int, ...] = buckets(8),
    ) -> None:
        self._eager = TorchRunner(network)
        self._dtype = next(network.parameters()).dtype
        self._device, self._most, self._sizes = device, most, sizes
        self._graphs: dict[torch.Size, GraphRunner] = {}

    def __call__(self, crops: Tensor) -> Any:
        """Run the network: see `Runner`."""
        shape = crops.shape[1:]
        if shape not in self._graphs:
            if len(self._graphs) == self._most:
                return self._eager(crops)
            colours, height, width = shape
            self._graphs[shape] = GraphRunner(
                self._eager, (colours, height, width), self._dtype, self._device, self._sizes
            )
        return self._graphs[shape](crops)


@contextmanager
def _trying_convolutions() -> Iterator[None]:
    """Within it cuDNN times its ways to compute each new shape once and remembers the quickest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class _Capture:
    """Records graphs that share their memory, since no two of them run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Memory is shared among captures on one stream, which must not be the default one.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(
        self, compute: Callable[[Tensor], Any], batch: Tensor
    ) -> tuple[Callable[[], None], Any]:
        """A replay for what is in that batch's memory, and where it leaves the outputs."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), _trying_convolutions():
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UP):
                    compute(batch)
            torch.cuda.current_stream().wait_stream(self._stream)
            with torch.cuda.graph(graph, self._pool, self._stream):
                outputs = compute(batch)
        return graph.replay, outputs
