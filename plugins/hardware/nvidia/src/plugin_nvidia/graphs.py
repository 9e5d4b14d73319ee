"""CUDA graphs of decode steps, all in one pool of memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from core.interfaces.hardware import Between, StepGraphs

# Up to 8 rows by powers of two, then in steps that grow: a step reads every weight whatever its rows, so some rows of
# padding cost little, and every size costs some milliseconds of start-up.
_STEPS = ((64, 8), (128, 16), (256, 32))
_LAST_STEP = 64
_TYPES = {1: "|u1", 2: "<i2", 4: "<i4", 8: "<i8"}


def graph_sizes(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows to record, up to and with `max_rows`."""
    sizes = [size for size in (1, 2, 4, 8) if size < max_rows]
    size = 8
    while size < max_rows:
        size += next((step for limit, step in _STEPS if size < limit), _LAST_STEP)
        sizes.append(min(size, max_rows))
    return tuple(sizes) if sizes and sizes[-1] == max_rows else (*sizes, max_rows)


def token_sizes(max_tokens: int) -> tuple[int, ...]:
    """Numbers of tokens to record in pieces, up to `max_tokens`. Up to some hundred the device reads every weight
    whatever they are; beyond, padding costs what tokens cost."""
    sizes = (16, 32, 64, 128, 192, 256, *range(384, max_tokens, 128))
    return (*(size for size in sizes if size < max_tokens), max_tokens) if max_tokens else ()


class CudaStepGraphs(StepGraphs):
    """Captured on the current stream, which must not be the default one."""

    def __init__(self, sizes: tuple[int, ...], token_sizes: tuple[int, ...] = (), *, on_demand: bool = False) -> None:
        self.sizes, self.token_sizes, self.on_demand = sizes, token_sizes, on_demand
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._recorded: dict[tuple[int, tuple[int, ...]], tuple[Callable[[], None], tuple[torch.Tensor, ...]]] = {}
        self._pieces: dict[int, tuple[list[Callable[[], None]], torch.Tensor]] = {}

    def capture(self, size: int, run: Callable[[], tuple[torch.Tensor, ...]], variants: tuple[int, ...] = ()) -> None:
        run()  # kernels that this number of rows calls for are compiled and loaded now
        with self._recording() as recording:
            outputs = tuple(tensor.contiguous() for tensor in run())
        # Graphs run one at a time, so they may all work in the same memory, their results too: who needs those reads
        # them before the next replay. A tensor that owned its memory would keep it from the graphs captured later.
        self._recorded[size, variants] = recording.pieces[0], tuple(unowned(tensor) for tensor in outputs)

    def capture_pieces(self, size: int, run: Callable[[Between], torch.Tensor]) -> None:
        with self._recording() as recording:
            output = run(recording.between)
        self._pieces[size] = recording.pieces, unowned(output)

    def replay_pieces(self, size: int) -> torch.Tensor:
        pieces, output = self._pieces[size]
        for piece in pieces:
            piece()
        return output

    @contextmanager
    def _recording(self) -> Iterator[_Recording]:
        try:
            with _Recording(self._pool) as recording:
                yield recording
        except Exception:
            # After a capture that the driver broke off, torch takes the pool for one that is still being filled, and
            # refuses it; what was recorded before keeps its own.
            self._pool = torch.cuda.graph_pool_handle()
            raise

    def replay(self, size: int, variants: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
        replay, outputs = self._recorded[size, variants]
        replay()
        return outputs


class _Recording:
    """Captures what is launched until it ends, in pieces: graphs, and what is called between them."""

    def __init__(self, pool: Any) -> None:
        self.pieces: list[Callable[[], None]] = []
        self._pool = pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._collecting = False

    def __enter__(self) -> _Recording:
        torch.cuda.current_stream().synchronize()
        self._collecting = gc.isenabled()
        gc.disable()  # a tensor that dies while a graph is captured may do what a capture does not allow
        self._begin()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._end()
        finally:
            if self._collecting:
                gc.enable()

    def between(self, call: Callable[..., None], result: torch.Tensor, *tensors: torch.Tensor) -> None:
        self._end()
        self.pieces.append(partial(call, *(unowned(tensor) for tensor in (result, *tensors))))
        self._begin()

    def _begin(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def _end(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:  # else capturing failed, and there is nothing to end
            graph.capture_end()
            self.pieces.append(graph.replay)


class _Memory:
    """Device memory that somebody else owns, as `torch.as_tensor` takes it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        size = tensor.element_size()
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * size for stride in tensor.stride()),
            "typestr": _TYPES[size],
            "data": (tensor.data_ptr(), False),
            "version": 2,
        }


def unowned(tensor: torch.Tensor) -> torch.Tensor:
    """The same device memory, shape and type, without keeping the memory. tensor: not empty."""
    return torch.as_tensor(_Memory(tensor), device=tensor.device).view(tensor.dtype)
