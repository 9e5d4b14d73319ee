"""Log line and rates from records."""

from __future__ import annotations

from core.metrics.step_record import StepLog, StepRecord


def test_line_once_an_interval_and_only_after_work() -> None:
    log = StepLog(10.0, 0.0)
    assert log.line(11.0) is None  # nothing ran
    log.add(StepRecord(prefill_tokens=300, cached_tokens=100, total_pages=10, free_pages=5, cached_pages=1, waiting=2))
    log.add(StepRecord(decode_tokens=50, running=4, total_pages=10, free_pages=4, cached_pages=1, preemptions=1,
                       step_s=0.02, schedule_s=0.001))  # fmt: skip
    assert log.line(20.0) is None  # the interval began at 11
    line = log.line(21.0)
    assert line is not None
    assert line.startswith("prefill 30 tok/s, decode 5 tok/s, 4 running, 0 waiting, KV used 50.0%, cache hit 25.0%")
    assert "2 steps of 10.0 ms (schedule 0.50 ms), 1 preempted" in line
    assert log.line(40.0) is None


def test_line_is_off_with_interval_zero() -> None:
    log = StepLog(0.0, 0.0)
    log.add(StepRecord(decode_tokens=5))
    assert log.line(1e6) is None


def test_rates_are_since_the_last_look() -> None:
    log = StepLog(0.0, 0.0)
    log.add(StepRecord(decode_tokens=100))
    assert log.values(2.0)["decode_tokens_per_second"] == 50
    log.add(StepRecord(decode_tokens=100))
    assert log.values(2.1)["decode_tokens_per_second"] == 50  # too soon to tell
    assert log.values(4.0)["decode_tokens_per_second"] == 50
    assert log.values(5.0)["decode_tokens_per_second"] == 0
    assert log.values(5.0)["decode_tokens"] == 200
