"""Workloads on one engine: warm-up, repetitions, the median, its share of the limit and where a step's time went."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from core.bench.breakdown import Counters, breakdown
from core.bench.ceilings import Ceilings, measure_ceilings
from core.bench.counting import ModelCounts, count_model
from core.bench.datasets import Conversation
from core.bench.offline import OfflineBench
from core.bench.profile import StepProfile, profile_workload
from core.bench.report import RequestRecord
from core.bench.roofline import limit_figure, limit_of
from core.bench.workloads import Workload
from core.interfaces.errors import EngineError

# Steps of a warm-up's answers: enough for every shape of the run to have come once.
WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Measured:
    """figure: median of `runs`, in the unit of the workload's figure. ttft_ms: median time to the first token.
    limit: the figure at the measured ceilings; share: how much of it is reached, 1 is all. bound: of the limit."""

    work: Workload
    figure: float
    runs: tuple[float, ...]
    ttft_ms: float
    wall_s: float
    limit: float | None
    share: float | None
    bound: str
    steps: dict[str, float]


class WorkloadBench:
    """An engine, the device's ceilings and the model's counts. ceilings: measured here, before the first run."""

    def __init__(self, bench: OfflineBench) -> None:
        runner = bench.runner
        self.bench = bench
        self.counts: ModelCounts = count_model(
            runner.model,  # type: ignore[arg-type]
            bench.resolution.spec,
            tp_size=runner.config.tp.size,
            kv_itemsize=kv_itemsize(bench),
        )
        self.ceilings: Ceilings = measure_ceilings(runner.device, runner.config.dtype)
        self._counters = Counters(bench.engine, runner)

    def run(self, work: Workload, *, repeat: int, limit_s: float | None = None) -> Measured:
        """Warm up, then time. repeat: timed repetitions; fewer once they have taken `limit_s` together.
        Raises EngineError if a request fails."""
        self._once(work, 0, min(work.output_len, WARM_UP_TOKENS))
        figures, ttfts, walls = [], [], []
        before = self._counters.read()
        began = time.perf_counter()
        for repetition in range(repeat):
            records, wall_s = self._once(work, repetition + 1, work.output_len)
            figures.append(figure_of(work, records, wall_s))
            ttfts.append(statistics.median(record.first_token_s for record in records) * 1e3)
            walls.append(wall_s)
            if limit_s is not None and time.perf_counter() - began >= limit_s:
                break
        steps = breakdown(before, self._counters.read())
        figure = statistics.median(figures)
        limit = limit_of(work, self.counts, self.ceilings, self.bench.resolution.chunk_tokens)
        best = limit_figure(work, limit)
        share = None
        if best is not None:
            share = best / figure if work.figure == "ms_per_token" else figure / best
        return Measured(
            work, figure, tuple(figures), statistics.median(ttfts), statistics.median(walls), best, share, limit.bound,
            steps,
        )  # fmt: skip

    def profile(self, work: Workload, draw: int) -> StepProfile:
        """What the device runs in a step of the workload; its caches are warm from `run`."""
        return profile_workload(self.bench, work, draw)

    def _once(self, work: Workload, draw: int, output_len: int) -> tuple[list[RequestRecord], float]:
        prompts = work.prompts(self.bench.vocab_size, draw)
        conversations = [Conversation(prompt, output_len=output_len) for prompt in prompts]
        records, wall_s = self.bench.run(conversations, temperature=work.temperature)
        failed = next((record.error for record in records if record.error is not None), None)
        if failed is not None:
            raise EngineError(f"{work.name}: a request failed: {failed}")
        return records, wall_s


def figure_of(work: Workload, records: list[RequestRecord], wall_s: float) -> float:
    """A run's figure. ms_per_token leaves the first token out."""
    if work.figure == "ms_per_token":
        record = records[0]
        return (record.end_s - record.first_token_s) / max(1, record.output_tokens - 1) * 1e3
    return work.rate(wall_s)


def kv_itemsize(bench: OfflineBench) -> float:
    """Bytes that an element of the KV cache takes, padding and scales counted."""
    runner, spec = bench.runner, bench.resolution.spec
    elements = sum(group.elements_per_token(runner.config.tp.size) for group in spec.cache_groups)
    return runner.kv_bytes_per_page() / (runner.config.page_size * elements) if elements else 0.0
