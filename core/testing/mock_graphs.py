"""Recording and replaying on a CPU: every tensor operation of a run, repeated later on the very same memory.

As on a device with graphs, what Python decided while recording is frozen and a replay calls no code of the model.
Inputs are read at the addresses where they were, results go where they went, and a recording keeps neither alive: all
of them share the memory of `GraphMemory`, which holds rubbish whenever a replay begins. Recording computes nothing that
anybody could see, and looking at a value on the host while recording is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from core.interfaces.hardware import Between, EngineFacts, HardwareCapabilities, StepGraphs
from core.testing.graph_memory import GraphMemory, unowned
from core.testing.mock_hardware import MockHardware

# Operations that give memory and launch nothing.
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# What recording wrote to memory of others is put back, unless that is more than this, such as a KV cache, where it is
# the null page that was written.
_MOST_BYTES_PUT_BACK = 1 << 22


@dataclass(frozen=True, slots=True)
class _Call:
    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: tuple[torch.Tensor, ...]


class _Recorder(TorchDispatchMode):
    """Runs operations and keeps them. calls: so far, of the piece that is being recorded. outside: memory of others
    that they know of, by address."""

    def __init__(self, memory: GraphMemory) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.outside: dict[int, StorageWeakRef] = {}
        self._memory = memory
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of what was written outside

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        indexes = func is torch.ops.aten.index.Tensor and not any(
            isinstance(i, torch.Tensor) and i.dtype is torch.bool for i in args[1]
        )
        if torch.Tag.data_dependent_output in func.tags or (
            torch.Tag.dynamic_output_shape in func.tags and not indexes
        ):
            raise RuntimeError(f"{func} looks at values on the host, which a recorded step cannot do")
        given = _tensors((args, kwargs))
        if func._schema.is_mutable:
            self._note_outside(func, args, kwargs)
        known = {tensor.untyped_storage().data_ptr() for tensor in given}
        views = True

        def placed(made: Any) -> Any:
            nonlocal views
            if not isinstance(made, torch.Tensor) or made.untyped_storage().data_ptr() in known:
                return made
            views = False
            return self._memory.adopt(made)

        out = tree_map(placed, func(*args, **kwargs))
        launches = func._schema.is_mutable or not views
        if launches and func.overloadpacket.__name__ not in _EMPTY:
            for tensor in given:
                if not self._memory.holds(tensor) and tensor.untyped_storage().nbytes():
                    storage = tensor.untyped_storage()
                    self.outside.setdefault(storage.data_ptr(), StorageWeakRef(storage))
            kept = tuple(unowned(tensor) for tensor in _tensors(out))
            self.calls.append(_Call(func, _known_only(args), _known_only(kwargs), kept))
        return out

    def _note_outside(self, func: Any, args: Any, kwargs: Any) -> None:
        for at, argument in enumerate(func._schema.arguments):
            value = args[at] if at < len(args) else kwargs.get(argument.name)
            if argument.alias_info is None or not argument.alias_info.is_write or not isinstance(value, torch.Tensor):
                continue
            storage = value.untyped_storage()
            at_address, size = storage.data_ptr(), storage.nbytes()
            if at_address in self._before or size > _MOST_BYTES_PUT_BACK or self._memory.holds(value):
                continue
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._before[at_address] = whole, whole.clone()

    def forget_results(self) -> None:
        """A device records and does not compute."""
        for whole, before in self._before.values():
            whole.copy_(before)
        self._memory.spoil()


def _tensors(out: Any) -> tuple[torch.Tensor, ...]:
    return tuple(leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))


def _known_only(values: Any) -> Any:
    return tree_map(lambda value: unowned(value) if isinstance(value, torch.Tensor) else value, values)


class _Recording:
    """pieces: what a replay calls, in order. out: what the run returned."""

    def __init__(
        self, pieces: list[Callable[[], None]], out: tuple[torch.Tensor, ...], outside: dict[int, StorageWeakRef]
    ) -> None:
        self.pieces = pieces
        self.out = out
        self._outside = list(outside.values())

    def replay(self, memory: GraphMemory) -> tuple[torch.Tensor, ...]:
        if any(storage.expired() for storage in self._outside):
            raise RuntimeError("a recorded step knows of memory that was given back since")
        memory.spoil()
        for piece in self.pieces:
            piece()
        return self.out


class MockGraphs(StepGraphs):
    """sizes, token_sizes as given. captured, captured_pieces: sizes in the order in which they were recorded. replays,
    piece_replays: how often each was replayed. memory: that all of them share."""

    def __init__(self, sizes: tuple[int, ...], token_sizes: tuple[int, ...] = (), *, on_demand: bool = False) -> None:
        self.sizes, self.token_sizes, self.on_demand = sizes, token_sizes, on_demand
        self.captured: list[int] = []
        self.captured_pieces: list[int] = []
        self.replays, self.piece_replays = dict.fromkeys(sizes, 0), dict.fromkeys(token_sizes, 0)
        self.memory = GraphMemory()
        self._recorded: dict[tuple[int, tuple[int, ...]], _Recording] = {}
        self._pieces: dict[int, _Recording] = {}

    def capture(self, size: int, run: Callable[[], tuple[torch.Tensor, ...]], variants: tuple[int, ...] = ()) -> None:
        run()  # as on a device: what happens only once happens now
        self._recorded[size, variants] = self._record(lambda between: tuple(x.contiguous() for x in run()))
        self.captured.append(size)

    def replay(self, size: int, variants: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
        out = self._recorded[size, variants].replay(self.memory)
        self.replays[size] += 1
        return out

    def capture_pieces(self, size: int, run: Callable[[Between], torch.Tensor]) -> None:
        self._pieces[size] = self._record(lambda between: (run(between),))
        self.captured_pieces.append(size)

    def replay_pieces(self, size: int) -> torch.Tensor:
        (out,) = self._pieces[size].replay(self.memory)
        self.piece_replays[size] += 1
        return out

    def _record(self, run: Callable[[Between], tuple[torch.Tensor, ...]]) -> _Recording:
        recorder = _Recorder(self.memory)
        pieces: list[Callable[[], None]] = []

        def end() -> None:
            pieces.append(partial(_repeat, list(recorder.calls)))
            recorder.calls.clear()

        def between(call: Callable[..., None], result: torch.Tensor, *tensors: torch.Tensor) -> None:
            end()
            with _disable_current_modes():
                pieces.append(partial(call, *(unowned(tensor) for tensor in (result, *tensors))))

        try:
            with recorder:
                out = run(between)
            end()
            return _Recording(pieces, tuple(unowned(tensor) for tensor in out), recorder.outside)
        finally:
            recorder.forget_results()


def _repeat(calls: list[_Call]) -> None:
    for call in calls:
        for kept, again in zip(call.out, _tensors(call.op(*call.args, **call.kwargs)), strict=True):
            if kept.untyped_storage().data_ptr() != again.untyped_storage().data_ptr():
                kept.copy_(again)  # not in place: the recorded result has this memory


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
        most = min(facts.max_tokens, facts.max_seqs * facts.context_length)
        tokens = tuple(size for size in self.token_sizes if size <= most)
        self.made = MockGraphs(rows, tokens, on_demand=self.on_demand)
        return self.made
