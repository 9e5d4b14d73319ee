"""One record per engine step; the log line, the metric values and the statistics are all derived from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class StepRecord:
    """What one complete step was. Times in seconds.

    prefill_tokens, decode_tokens: computed by this step. sampled_tokens: handed to requests. running, waiting:
    requests after it. cached_tokens: prompt tokens that the prefix cache saved, of requests admitted with it.
    free_pages, cached_pages, total_pages: KV pages after it (cached ones can be evicted). preemptions: since the
    record before. Counts of requests and pages, preemptions and cached_tokens are taken every 50 ms of steps, not
    at each. schedule_s: spent in the scheduler. device_s: as the executor measured it. build_s, launch_s, wait_s,
    output_s: as `core.interfaces.step.StepTimes`. step_s: host time from the end of the previous step, or from the
    start of this one after a pause.
    """

    prefill_tokens: int = 0
    decode_tokens: int = 0
    sampled_tokens: int = 0
    running: int = 0
    waiting: int = 0
    cached_tokens: int = 0
    free_pages: int = 0
    cached_pages: int = 0
    total_pages: int = 0
    preemptions: int = 0
    finished: int = 0
    failed: bool = False
    schedule_s: float = 0.0
    build_s: float = 0.0
    launch_s: float = 0.0
    wait_s: float = 0.0
    output_s: float = 0.0
    device_s: float = 0.0
    step_s: float = 0.0

    def keep_gauges(self, other: StepRecord) -> None:
        """Take over counts of requests and pages from an earlier record."""
        self.running, self.waiting = other.running, other.waiting
        self.free_pages, self.cached_pages, self.total_pages = other.free_pages, other.cached_pages, other.total_pages

    @property
    def kv_usage(self) -> float:
        """Share of the KV pages that running requests hold, 0 to 1."""
        if not self.total_pages:
            return 0.0
        return max(0.0, 1.0 - (self.free_pages + self.cached_pages) / self.total_pages)


@dataclass(slots=True)
class Totals:
    """Sums over steps."""

    steps: int = 0
    failed_steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    sampled_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    finished: int = 0
    schedule_s: float = 0.0
    build_s: float = 0.0
    launch_s: float = 0.0
    wait_s: float = 0.0
    output_s: float = 0.0
    device_s: float = 0.0
    step_s: float = 0.0

    def add(self, record: StepRecord) -> None:
        self.steps += 1
        self.failed_steps += record.failed
        self.prefill_tokens += record.prefill_tokens
        self.decode_tokens += record.decode_tokens
        self.sampled_tokens += record.sampled_tokens
        self.cached_tokens += record.cached_tokens
        self.preemptions += record.preemptions
        self.finished += record.finished
        self.schedule_s += record.schedule_s
        self.build_s += record.build_s
        self.launch_s += record.launch_s
        self.wait_s += record.wait_s
        self.output_s += record.output_s
        self.device_s += record.device_s
        self.step_s += record.step_s


class StepLog:
    """Collects records. `line` is for people, once per interval; `values` is for metrics, at any time.

    log_interval_s: seconds between lines; 0 is off.
    """

    def __init__(self, log_interval_s: float, now_s: float) -> None:
        self.totals = Totals()
        self.last = StepRecord()
        self._log_interval_s = log_interval_s
        self._window = Totals()
        self._window_start_s = now_s
        self._rate_start_s = now_s
        self._rate_totals = (0, 0)
        self._rates = (0.0, 0.0)

    def add(self, record: StepRecord) -> None:
        """Count one step."""
        self.totals.add(record)
        self._window.add(record)
        self.last = record

    def line(self, now_s: float) -> str | None:
        """The log line if the interval is over and something ran in it, else None."""
        elapsed_s = now_s - self._window_start_s
        if not self._log_interval_s or elapsed_s < self._log_interval_s:
            return None
        window, last = self._window, self.last
        self._window, self._window_start_s = Totals(), now_s
        if not window.steps:
            return None
        prompt = window.prefill_tokens + window.cached_tokens
        hit = window.cached_tokens / prompt if prompt else 0.0
        failed = f", {window.failed_steps} steps failed" if window.failed_steps else ""
        preempted = f", {window.preemptions} preempted" if window.preemptions else ""
        return (
            f"prefill {window.prefill_tokens / elapsed_s:.0f} tok/s, "
            f"decode {window.decode_tokens / elapsed_s:.0f} tok/s, "
            f"{last.running} running, {last.waiting} waiting, KV used {last.kv_usage:.1%}, cache hit {hit:.1%}, "
            f"{window.steps} steps of {window.step_s / window.steps * 1e3:.1f} ms"
            f" (schedule {window.schedule_s / window.steps * 1e3:.2f} ms){preempted}{failed}"
        )

    def values(self, now_s: float) -> dict[str, float]:
        """Metric name (as in `core.metrics.prometheus`, without prefix) -> value. Rates are since the last call
        that was at least half a second earlier."""
        totals, last = self.totals, self.last
        elapsed_s = now_s - self._rate_start_s
        if elapsed_s >= 0.5:
            prefill, decode = self._rate_totals
            self._rates = (
                (totals.prefill_tokens - prefill) / elapsed_s,
                (totals.decode_tokens - decode) / elapsed_s,
            )
            self._rate_totals = (totals.prefill_tokens, totals.decode_tokens)
            self._rate_start_s = now_s
        prompt = totals.prefill_tokens + totals.cached_tokens
        return {
            "steps": totals.steps,
            "failed_steps": totals.failed_steps,
            "prefill_tokens": totals.prefill_tokens,
            "decode_tokens": totals.decode_tokens,
            "cached_prompt_tokens": totals.cached_tokens,
            "preemptions": totals.preemptions,
            "step_seconds": totals.step_s,
            "schedule_seconds": totals.schedule_s,
            "build_seconds": totals.build_s,
            "launch_seconds": totals.launch_s,
            "wait_seconds": totals.wait_s,
            "output_seconds": totals.output_s,
            "device_seconds": totals.device_s,
            "running_requests": last.running,
            "waiting_requests": last.waiting,
            "kv_pages": last.total_pages,
            "kv_pages_free": last.free_pages,
            "kv_pages_cached": last.cached_pages,
            "kv_usage_ratio": last.kv_usage,
            "cache_hit_ratio": totals.cached_tokens / prompt if prompt else 0.0,
            "prefill_tokens_per_second": self._rates[0],
            "decode_tokens_per_second": self._rates[1],
        }
