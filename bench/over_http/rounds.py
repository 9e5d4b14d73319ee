"""The same rounds for every engine: each round opens all streams at once, with prompts that nobody has seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from core.bench.datasets import Conversation, random_prompts
from core.bench.report import RequestRecord, summarise

VOCAB = 4000  # ids below the demo model's special tokens
Run = Callable[[Sequence[Conversation]], tuple[list[RequestRecord], float]]


def measure(
    run: Run,
    streams: int,
    input_len: int,
    output_len: int,
    seconds: float,
    turn: int = 0,
    pause_s: float = 0.0,
    begun: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Rounds until `seconds` are over, after one that warms up; all of them together.

    run: sends conversations at once; gives their records and the wall time in seconds. turn: every turn has prompts of
    its own, the same for every engine. pause_s: nothing is asked for so long before each round, and the wall time does
    not count it. begun: called after the warm-up. own_cpu_s: processor seconds of this process.
    Raises RuntimeError if a request failed or gave another number of tokens than was asked for.
    """
    records: list[RequestRecord] = []
    wall_s, number = 0.0, 0
    seed = 100_000 * turn + 100 * streams
    run(random_prompts(streams, input_len, min(output_len, 16), VOCAB, seed=10_000_000 + seed))
    begun()
    begin, begin_cpu_s = time.perf_counter(), time.process_time()
    while number == 0 or time.perf_counter() - begin < seconds:
        time.sleep(pause_s)
        found, took_s = run(random_prompts(streams, input_len, output_len, VOCAB, seed=20_000_000 + seed + number))
        bad = [r.error or f"{r.output_tokens} tokens" for r in found if r.error or r.output_tokens != output_len]
        if bad:
            raise RuntimeError(f"{len(bad)} of {len(found)} requests went wrong: {bad[0]}")
        records += found
        wall_s += took_s
        number += 1
    return {"rounds": number, "own_cpu_s": time.process_time() - begin_cpu_s, **summarise(records, wall_s)}
