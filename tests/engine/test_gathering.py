"""While many requests run, readers are woken for several tokens at once: never for nothing, never too late."""

from __future__ import annotations

import asyncio

import numpy as np

from core.engine.client import EngineRequest, TokenChunk
from core.engine.messages import StepOutputs
from core.engine.streams import FEW_STREAMS, MAX_GATHER_S, Stream, StreamTable
from core.interfaces.params import SamplingParams


class Bench:
    """A table, its clock, and what its readers have read."""

    def __init__(self, num_streams: int, wakes_per_s: float) -> None:
        self.now_s = 100.0
        self.table = StreamTable(lambda request_id: None, clock=lambda: self.now_s, wakes_per_s=wakes_per_s)
        request = EngineRequest(np.zeros(1, np.int32), SamplingParams())
        self.streams = [self.table.open(request) for _ in range(num_streams)]
        self.read: list[list[TokenChunk]] = [[] for _ in self.streams]
        self.tasks = [asyncio.create_task(self._reader(index)) for index in range(num_streams)]

    async def _reader(self, index: int) -> None:
        async for chunk in self.table.read(lambda: (self.streams[index], frozenset())):
            self.read[index].append(chunk)

    async def step(self, token: int, *, after_s: float, streams: list[Stream] | None = None, finish: int = 0) -> None:
        await asyncio.sleep(0)
        self.now_s += after_s
        ids = [stream.id for stream in (self.streams if streams is None else streams)]
        first = {index: 0 for index, one in enumerate(streams or self.streams) if not one.num_generated}
        self.table.feed(
            StepOutputs(
                np.array(ids, np.int64).tobytes(), np.full(len(ids), token, np.int32).tobytes(),
                np.full(len(ids), finish, np.uint8).tobytes(), first=first,
            )
        )  # fmt: skip
        for _ in range(3):
            await asyncio.sleep(0)

    def tokens(self, index: int) -> list[list[int]]:
        return [chunk.tokens for chunk in self.read[index]]


async def test_many_streams_get_tokens_together() -> None:
    bench = Bench(64, wakes_per_s=2500)  # 25.6 ms a turn
    for token in range(7):
        await bench.step(token, after_s=0.013)
    assert all(bench.tokens(index) == [[0], [1, 2], [3, 4], [5, 6]] for index in range(64))
    await bench.step(7, after_s=0.001, finish=2)
    await asyncio.gather(*bench.tasks)
    assert bench.tokens(63)[-1] == [7]
    assert bench.read[63][-1].finish_reason == "length"


async def test_few_streams_and_slow_steps_wait_for_nothing() -> None:
    for count, after_s in ((FEW_STREAMS, 0.001), (64, 0.03)):
        bench = Bench(count, wakes_per_s=2500)
        for token in range(5):
            await bench.step(token, after_s=after_s)
        assert all(bench.tokens(index) == [[0], [1], [2], [3], [4]] for index in range(count))
        bench.table.fail_all(RuntimeError)  # type: ignore[arg-type]
        await asyncio.gather(*bench.tasks, return_exceptions=True)


async def test_zero_sends_every_token_at_once() -> None:
    bench = Bench(64, wakes_per_s=0)
    for token in range(4):
        await bench.step(token, after_s=0.0001)
    assert bench.tokens(0) == [[0], [1], [2], [3]]


async def test_a_first_token_does_not_wait_for_the_others() -> None:
    bench = Bench(20, wakes_per_s=200)
    early, late = bench.streams[:19], bench.streams
    await bench.step(0, after_s=1, streams=early)
    await bench.step(1, after_s=0.001, streams=late)
    assert bench.tokens(19) == [[1]]
    assert bench.tokens(0) == [[0]]


async def test_what_is_held_goes_out_though_no_step_follows() -> None:
    bench = Bench(20, wakes_per_s=2)
    await bench.step(0, after_s=1)
    await bench.step(1, after_s=0.001)
    assert bench.tokens(0) == [[0]]
    await asyncio.sleep(4 * MAX_GATHER_S)
    assert all(bench.tokens(index) == [[0], [1]] for index in range(20))


async def test_a_stream_whose_tokens_were_read_is_not_woken_for_nothing() -> None:
    bench = Bench(20, wakes_per_s=2)
    await bench.step(0, after_s=1)
    await bench.step(1, after_s=0.001)
    assert bench.streams[0].take().tokens == [1]  # a reader that came back on its own
    await bench.step(2, after_s=1, streams=bench.streams[1:])
    assert bench.tokens(0) == [[0]]
    assert bench.tokens(1) == [[0], [1, 2]]
