"""The loop with a fake scheduler and executor: outputs, overlap, errors, failing steps, records."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from engine_fakes import (
    EOS,
    LAUNCH_RAISES,
    WAIT_RAISES,
    FakeExecutor,
    FakeScheduler,
    add,
    expected,
    finish_of,
    hello,
    make_engine,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from core.engine.engine import Engine, EngineFailed
from core.engine.messages import FINISH_REASONS, StepOutputs
from core.interfaces.errors import EngineError


def drive(engine: Engine, max_turns: int = 10_000) -> tuple[dict[int, list[int]], dict[int, str], list[StepOutputs]]:
    """Tokens and finish reason by request id, and every message."""
    tokens: dict[int, list[int]] = {}
    finish: dict[int, str] = {}
    messages = []
    for _ in range(max_turns):
        if not engine.has_work:
            engine.settle()
            break
        for outputs in engine.step() or ():
            messages.append(outputs)
            ids = np.frombuffer(outputs.ids, np.int64).tolist()
            assert len(set(ids)) == len(ids), "one request at most once a message"
            rows = np.frombuffer(outputs.tokens, np.int32).tolist(), np.frombuffer(outputs.finish, np.uint8).tolist()
            for request_id, token, reason in zip(ids, *rows, strict=True):
                assert request_id not in finish, "nothing after the finish"
                if token >= 0:
                    tokens.setdefault(request_id, []).append(token)
                if reason:
                    finish[request_id] = FINISH_REASONS[reason]
    assert not engine.has_work
    return tokens, finish, messages


@pytest.mark.parametrize("overlap", [False, True])
def test_requests_give_their_tokens(overlap: bool) -> None:
    engine = make_engine(overlap, max_running=3)
    for i in range(10):
        engine.submit(add(i, [i + 1] * (i * 5 + 1), seed=i, max_tokens=6))
    tokens, finish, _ = drive(engine)
    for i in range(10):
        want = expected([i + 1] * (i * 5 + 1), i, 6)
        assert (tokens[i], finish[i]) == (want, finish_of(want))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 50), st.integers(1, 12)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_overlap_changes_nothing(requests, max_running: int, chunk: int) -> None:
    results = []
    for overlap in (False, True):
        engine = make_engine(overlap, max_running=max_running, chunk=chunk)
        for i, (length, seed, max_tokens) in enumerate(requests):
            engine.submit(add(i, [i + 1] * length, seed=seed, max_tokens=max_tokens))
        results.append(drive(engine)[:2])
    assert results[0] == results[1]


def test_overlap_launches_before_it_waits() -> None:
    log: list[tuple[str, int]] = []

    class Recorded(FakeExecutor):
        def launch(self, plan):
            log.append(("launch", plan.step))
            handle = super().launch(plan)
            wait = handle.wait
            handle.wait = lambda: (log.append(("wait", plan.step)), wait())[1]
            return handle

    for overlap, want in (
        (False, ["launch", "wait", "launch", "wait"]),
        (True, ["launch", "launch", "wait", "launch"]),
    ):
        log.clear()
        engine = Engine(FakeScheduler(), Recorded(), hello(), lambda m: m, max_slots=8, overlap=overlap)
        engine.submit(add(1, [5], seed=2, max_tokens=5))
        drive(engine)
        assert [what for what, _ in log[:4]] == want
        assert [step for what, step in log if what == "wait"] == sorted(step for what, step in log if what == "launch")


@pytest.mark.parametrize("overlap", [False, True])
def test_bad_requests_are_entries_not_exceptions(overlap: bool) -> None:
    engine = make_engine(overlap, max_running=2, max_queued=2)
    engine.submit(add(1, [], max_tokens=3))
    for i in (2, 3, 4):
        engine.submit(add(i, [i], max_tokens=2))
    tokens, finish, messages = drive(engine)
    assert finish[1] == "error"
    assert finish[4] == "error"
    assert tokens.keys() == {2, 3}
    refused = messages[0]
    assert refused.errors[0] == "prompt is empty"
    assert (refused.error_info[0].kind, refused.error_info[0].param) == ("RequestError", "prompt")
    assert (refused.error_info[1].kind, refused.error_info[1].retry_after_s) == ("Overloaded", 2)


@pytest.mark.parametrize("overlap", [False, True])
def test_cancel_running_and_waiting(overlap: bool) -> None:
    engine = make_engine(overlap, max_running=1)
    engine.submit(add(1, [1] * 40, max_tokens=1000))
    engine.submit(add(2, [2], max_tokens=1000))
    engine.submit(add(3, [3], seed=3, max_tokens=2))
    engine.step()
    for request_id in (1, 2, 99):
        engine.cancel(request_id)
    tokens, finish, _ = drive(engine)
    assert finish == {1: "abort", 2: "abort", 3: finish_of(expected([3], 3, 2))}
    assert tokens[3] == expected([3], 3, 2)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("poison", [LAUNCH_RAISES, WAIT_RAISES])
def test_a_failing_step_ends_its_requests_and_the_loop_goes_on(overlap: bool, poison: int, caplog) -> None:
    engine = make_engine(overlap, max_running=4, chunk=4)
    engine.submit(add(1, [poison] * 10, max_tokens=5))  # fails while it is only prefilled
    engine.submit(add(2, [2], max_tokens=5))
    with caplog.at_level(logging.ERROR):
        tokens, finish, messages = drive(engine)
    assert finish == {1: "error", 2: "error"}
    texts = [text for m in messages for text in m.errors.values()]
    assert len(texts) == 2
    assert all("failed" in text for text in texts)
    assert "step 1 failed" in caplog.text
    scheduler = engine._scheduler
    assert not scheduler.rows
    assert len(scheduler.free) == 4
    assert not engine._outputs.failed
    assert not engine._live
    engine.submit(add(3, [3], seed=3, max_tokens=4))
    tokens, finish, _ = drive(engine)
    assert tokens[3] == expected([3], 3, 4)


def test_three_failing_steps_in_a_row_end_the_engine() -> None:
    engine = make_engine()
    for i in range(2):
        engine.submit(add(i, [LAUNCH_RAISES], max_tokens=5))
        drive(engine)
    engine.submit(add(5, [5], max_tokens=1))
    drive(engine)  # a good step in between starts the count anew
    for i in range(10, 12):
        engine.submit(add(i, [WAIT_RAISES], max_tokens=5))
        drive(engine)
    engine.submit(add(12, [LAUNCH_RAISES], max_tokens=5))
    with pytest.raises(EngineFailed, match="3 steps in a row failed; the last: RuntimeError: launch failed"):
        drive(engine)


def test_a_scheduler_that_raises_ends_the_engine() -> None:
    engine = make_engine()
    engine._scheduler.schedule = lambda: 1 / 0
    engine.submit(add(1, [1], max_tokens=5))
    with pytest.raises(EngineFailed, match="ZeroDivisionError"):
        engine.step()


def test_logprobs_only_for_those_who_asked() -> None:
    engine = make_engine()
    engine.submit(add(1, [1], max_tokens=2, logprobs=2))
    engine.submit(add(2, [2], max_tokens=2))
    _, _, messages = drive(engine)
    for outputs in messages:
        ids = np.frombuffer(outputs.ids, np.int64).tolist()
        assert {ids[i] for i in outputs.logprobs} == {1} & set(ids)
        for top in outputs.logprobs.values():
            assert (top.logprob, top.ids, top.logprobs) == (-0.5, [0, 1], [0.0, -1.0])
    assert engine._outputs.empty


def test_first_token_carries_cached_tokens_and_queue_time() -> None:
    engine = make_engine()
    engine.submit(add(1, [1] * 40, max_tokens=3))
    _, _, messages = drive(engine)
    assert messages[0].first == {0: 3}
    assert messages[0].queue_s[0] >= 0
    assert all(not m.first and not m.queue_s for m in messages[1:])


def test_records_add_up_to_stats_and_line(caplog) -> None:
    now = [0.0]
    engine = Engine(
        FakeScheduler(), FakeExecutor(), hello(), lambda m: m, max_slots=8, log_interval_s=5.0, clock=lambda: now[0]
    )
    engine.submit(add(1, [1] * 40, seed=5, max_tokens=3))
    engine.submit(add(2, [2] * 3, seed=5, max_tokens=2))
    drive(engine)
    values = engine.stats()
    assert values["prefill_tokens"] == 43
    assert values["decode_tokens"] == 3
    assert values["cached_prompt_tokens"] == 6
    assert (values["running_requests"], values["waiting_requests"], values["kv_usage_ratio"]) == (0, 0, 0)
    assert values["steps"] == engine.steps > 0
    now[0] = 10.0
    engine.submit(add(3, [3], seed=3, max_tokens=1))
    with caplog.at_level(logging.INFO, "core.engine"):
        drive(engine)
    assert "prefill 4 tok/s, decode 0 tok/s, 0 running, 0 waiting, KV used 0.0%, cache hit" in caplog.text


def test_flush_cache_only_when_idle() -> None:
    engine = make_engine()
    engine.submit(add(1, [1], max_tokens=1))
    with pytest.raises(EngineError, match="while requests run"):
        engine.flush_cache()
    drive(engine)
    engine.flush_cache()
    assert engine._scheduler.flushed == 1


def test_eos_is_part_of_the_tokens() -> None:
    seed = next(s for s in range(200) if EOS in expected([1], s, 5)[1:4])
    engine = make_engine(True)
    engine.submit(add(1, [1], seed=seed, max_tokens=50))
    tokens, finish, _ = drive(engine)
    assert tokens[1][-1] == EOS
    assert finish[1] == "stop"


def test_close_waits_for_steps_in_flight() -> None:
    engine = make_engine(True)
    engine.submit(add(1, [1], max_tokens=50))
    engine.step()
    assert engine.busy
    engine.close()
    assert not engine.busy
    assert engine._executor.closed
