"""CUDA graphs of decode steps, all in one pool of memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from core.interfaces.hardware import StepGraphs

# Up to 8 rows by powers of two, then in steps that grow: a step reads every weight whatever its rows, so some rows of
# padding cost little, and every size costs some milliseconds of start-up.
_STEPS = ((64, 8), (128, 16), (256, 32))
_LAST_STEP = 64
_TYPES = {1: "|u1", 2: "<u2", 4: "<i4", 8: "<i8"}
_INTEGERS = {1: torch.uint8, 2: torch.uint16, 4: torch.int32, 8: torch.int64}


def graph_sizes(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows to record, up to and with `max_rows`."""
    sizes = [size for size in (1, 2, 4, 8) if size < max_rows]
    size = 8
    while size < max_rows:
        size += next((step for limit, step in _STEPS if size < limit), _LAST_STEP)
        sizes.append(min(size, max_rows))
    return tuple(sizes) if sizes and sizes[-1] == max_rows else (*sizes, max_rows)


class CudaStepGraphs(StepGraphs):
    """Captured on the current stream, which must not be the default one."""

    def __init__(self, sizes: tuple[int, ...], *, on_demand: bool) -> None:
        self.sizes = sizes
        self.on_demand = on_demand
        self._pool: Any = None
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...]]] = {}

    def capture(self, size: int, run: Callable[[], tuple[torch.Tensor, ...]]) -> None:
        run()  # kernels that this number of rows calls for are compiled and loaded now
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        torch.cuda.current_stream().synchronize()
        collecting = gc.isenabled()
        gc.disable()  # a tensor that dies while a graph is captured may do what a capture does not allow
        try:
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                outputs = run()
            finally:
                graph.capture_end()
        finally:
            if collecting:
                gc.enable()
        # Graphs run one at a time, so they may all work in the same memory, their results too: who needs those reads
        # them before the next replay. A tensor that owned its memory would keep it from the graphs captured later.
        self._recorded[size] = graph, tuple(_unowned(tensor) for tensor in outputs)

    def replay(self, size: int) -> tuple[torch.Tensor, ...]:
        graph, outputs = self._recorded[size]
        graph.replay()
        return outputs


class _Memory:
    """Device memory that somebody else owns, as `torch.as_tensor` takes it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": _TYPES[tensor.element_size()],
            "data": (tensor.data_ptr(), False),
            "strides": None,
            "version": 2,
        }


def _unowned(tensor: torch.Tensor) -> torch.Tensor:
    """The same device memory, shape and type, without keeping the memory."""
    assert tensor.is_contiguous()
    assert tensor.numel()
    bits = torch.as_tensor(_Memory(tensor), device=tensor.device)
    return bits.view(tensor.dtype)
