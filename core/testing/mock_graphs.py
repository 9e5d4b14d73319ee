"""Recording and replaying on a CPU: every tensor operation of a run, repeated later on the very same tensors.

As on a device with graphs, what Python decided while recording is frozen, a replay calls no code of the model, inputs
are read where they were, and looking at a value on the host while recording is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.interfaces.hardware import Between, EngineFacts, HardwareCapabilities, StepGraphs
from core.testing.mock_hardware import MockHardware


@dataclass(frozen=True, slots=True)
class _Call:
    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: tuple[torch.Tensor, ...]


class _Recorder(TorchDispatchMode):
    """Runs operations and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        indexes = func is torch.ops.aten.index.Tensor and not any(
            isinstance(i, torch.Tensor) and i.dtype is torch.bool for i in args[1]
        )
        if torch.Tag.data_dependent_output in func.tags or (
            torch.Tag.dynamic_output_shape in func.tags and not indexes
        ):
            raise RuntimeError(f"{func} looks at values on the host, which a recorded step cannot do")
        out = func(*args, **kwargs)
        self.calls.append(_Call(func, args, kwargs, _tensors(out)))
        return out


def _tensors(out: Any) -> tuple[torch.Tensor, ...]:
    return tuple(leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))


class MockGraphs(StepGraphs):
    """sizes, token_sizes as given. replays, piece_replays: how often each size was replayed."""

    def __init__(self, sizes: tuple[int, ...], token_sizes: tuple[int, ...] = (), *, on_demand: bool = False) -> None:
        self.sizes, self.token_sizes, self.on_demand = sizes, token_sizes, on_demand
        self.captured: list[int] = []
        self.replays, self.piece_replays = dict.fromkeys(sizes, 0), dict.fromkeys(token_sizes, 0)
        self._recorded: dict[tuple[int, tuple[int, ...]], tuple[list[_Call], tuple[torch.Tensor, ...]]] = {}
        self._pieces: dict[int, tuple[list[Callable[[], None]], torch.Tensor]] = {}

    def capture(self, size: int, run: Callable[[], tuple[torch.Tensor, ...]], variants: tuple[int, ...] = ()) -> None:
        with _Recorder() as recorder:
            out = run()
        self.captured.append(size)
        self._recorded[size, variants] = recorder.calls, out

    def replay(self, size: int, variants: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
        calls, out = self._recorded[size, variants]
        _repeat(calls)
        self.replays[size] += 1
        return out

    def capture_pieces(self, size: int, run: Callable[[Between], torch.Tensor]) -> None:
        pieces: list[Callable[[], None]] = []
        recorder = _Recorder()

        def end() -> None:
            pieces.append(partial(_repeat, list(recorder.calls)))
            recorder.calls.clear()

        def between(call: Callable[..., None], result: torch.Tensor, *tensors: torch.Tensor) -> None:
            end()
            pieces.append(partial(call, result, *tensors))

        with recorder:
            out = run(between)
        end()
        self._pieces[size] = pieces, out

    def replay_pieces(self, size: int) -> torch.Tensor:
        pieces, out = self._pieces[size]
        for piece in pieces:
            piece()
        self.piece_replays[size] += 1
        return out


def _repeat(calls: list[_Call]) -> None:
    for call in calls:
        for kept, again in zip(call.out, _tensors(call.op(*call.args, **call.kwargs)), strict=True):
            if kept.untyped_storage().data_ptr() != again.untyped_storage().data_ptr():
                kept.copy_(again)  # neither a view nor in place: the recorded result has this memory


class MockGraphHardware(MockHardware):
    """Records decode steps of 1, 2, 4 and 8 rows, and in pieces other steps of 4, 8 and 24 tokens. `made`: the recorder
    of each engine built with it."""

    name: ClassVar[str] = "mock_graphs"
    capabilities: ClassVar[HardwareCapabilities] = HardwareCapabilities(
        graphs=True, dtypes=("float32",), page_size=4, chunk_tokens=64
    )
    sizes: tuple[int, ...] = (1, 2, 4, 8)
    token_sizes: tuple[int, ...] = (4, 8, 24)
    on_demand = False

    def graphs(self, facts: EngineFacts) -> MockGraphs:
        rows = tuple(size for size in self.sizes if size <= facts.max_seqs)
        self.made = MockGraphs(rows, self.token_sizes, on_demand=self.on_demand)
        return self.made
