"""Texts that fit grammars, in the loop with a fake scheduler and executor."""

from __future__ import annotations

import re
import threading

import engine_fakes
import numpy as np
import pytest
from engine_fakes import EOS, WAIT_RAISES, add, expected, finish_of
from grammar_fakes import PIECES, choices, grammar_engine, grammar_pool, ids_of, text_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_loop import drive

from core.engine.client import EngineRequest
from core.engine.engine import Engine
from core.engine.offline import OfflineEngine
from core.interfaces.errors import RequestError
from core.interfaces.params import GrammarParams, SamplingParams
from core.interfaces.prefix_cache import Namespace

YES_NO = choices("yes", "yesterday", "no", "nobody")


def turn(engine: Engine, max_turns: int = 4000):
    """`drive`, which sleeps while grammars are compiled."""
    step = engine.step

    def rested():
        engine.rest(0.05)
        return step()

    engine.step = rested  # type: ignore[method-assign]
    try:
        return drive(engine, max_turns)
    finally:
        engine.step = step  # type: ignore[method-assign]


def errors_of(messages) -> dict[int, tuple[str, object]]:
    found = {}
    for outputs in messages:
        ids = np.frombuffer(outputs.ids, np.int64).tolist()
        for index, text in outputs.errors.items():
            found[ids[index]] = (text, outputs.error_info[index])
    return found


@pytest.mark.parametrize("overlap", [False, True])
def test_texts_fit_and_others_are_as_they_were(overlap: bool) -> None:
    engine = grammar_engine(overlap, max_running=3)
    for i in range(12):
        engine.submit(add(i, [i + 1] * 3, seed=i, max_tokens=20, grammar=YES_NO if i % 2 else None))
    tokens, finish, _ = turn(engine)
    for i in range(12):
        if i % 2:
            assert text_of(tokens[i]) in ("yes", "yesterday", "no", "nobody")
            assert (tokens[i][-1], finish[i]) == (EOS, "stop")
        else:
            want = expected([i + 1] * 3, i, 20)
            assert (tokens[i], finish[i]) == (want, finish_of(want))


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.integers(0, 50),
        st.integers(1, 12),
        st.sampled_from([None, YES_NO, choices("a"), choices("no", after="A"), choices("x" * 30)]),
        st.one_of(st.none(), st.integers(0, 25)),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.integers(1, 4), st.integers(1, 20))
def test_overlap_changes_nothing_whoever_leaves(requests, max_running: int, chunk: int) -> None:
    """Cancelled ones apart: when they leave depends on the turn."""
    results = []
    for overlap in (False, True):
        engine = grammar_engine(overlap, max_running=max_running, chunk=chunk)
        for i, (length, seed, max_tokens, grammar, _) in enumerate(requests):
            engine.submit(add(i, [i + 1] * length, seed=seed, max_tokens=max_tokens, grammar=grammar))
        leaving = {i: at for i, (*_, at) in enumerate(requests) if at is not None}
        turns = 0
        step = engine.step

        def left(step=step, engine=engine, leaving=leaving):
            nonlocal turns
            for request_id in [i for i, at in leaving.items() if at == turns]:
                engine.cancel(request_id)
            turns += 1
            return step()

        engine.step = left  # type: ignore[method-assign]
        tokens, finish, _ = turn(engine)
        assert set(finish) == set(range(len(requests)))
        results.append([(tokens.get(i), finish[i]) for i in range(len(requests)) if i not in leaving])
        assert engine._constraints._texts == {}
        assert engine._outputs.empty
        assert not engine._live
    assert results[0] == results[1]


def test_a_masked_step_is_launched_before_the_one_before_it_is_waited_for() -> None:
    engine = grammar_engine(overlap=True)
    engine.submit(add(0, [1], max_tokens=4, grammar=choices("xxxxxx")))
    turn(engine)
    assert engine._executor.log == [
        ("launch", 1), ("sample", 1), ("launch", 2), ("wait", 1), ("sample", 2), ("launch", 3), ("wait", 2),
        ("sample", 3), ("launch", 4), ("wait", 3), ("sample", 4), ("wait", 4),
    ]  # fmt: skip


@pytest.mark.parametrize("overlap", [False, True])
def test_no_mask_before_the_marker(overlap: bool) -> None:
    """The fake model says its own text until the marker's last character; what follows fits."""
    own = expected([3], 5, 40)
    marker = text_of(own[4:7])
    assert EOS not in own[:7]
    engine = grammar_engine(overlap)
    engine.submit(add(0, [3], seed=5, max_tokens=30, grammar=choices("no", after=marker)))
    tokens, finish, _ = turn(engine)
    assert tokens[0][:7] == own[:7]
    assert (text_of(tokens[0][7:]), finish[0]) == ("no", "stop")


@given(st.lists(st.integers(1, 3), min_size=1, max_size=12), st.integers(0, 5), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_a_marker_is_found_however_it_is_cut(cuts: list[int], before: int, behind: int) -> None:
    marker = "</th>"
    text = "<" * before + marker + "z" * behind
    pieces = []
    rest = text
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    pieces = [piece.encode() for piece in [*pieces, rest] if piece]
    pool, _ = grammar_pool(pieces=(*pieces, b""), ends=(len(pieces),))
    engine = grammar_engine(pool=pool)
    constraints = engine._constraints
    request = add(0, [1], grammar=choices("q", after=marker))
    if not constraints.admits(request):
        while not constraints.ready():
            constraints.wait(1.0)
    seen = b""
    for token, piece in enumerate(pieces):
        if marker.encode() in seen:
            break
        assert not constraints._take(constraints._texts[0], token)
        seen += piece
        assert (constraints._texts[0].marker == b"") == (marker.encode() in seen)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_text_that_may_go_on_past_its_end_stops(overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = grammar_engine(overlap)
    engine.submit(add(0, [1], max_tokens=30, ignore_eos=True, grammar=choices("no")))
    monkeypatch.setattr(engine_fakes, "EOS", -5)  # the scheduler takes it for a token like any other
    tokens, finish, messages = turn(engine)
    assert (text_of(tokens[0]), finish[0], errors_of(messages)) == ("no", "stop", {})


@pytest.mark.parametrize("overlap", [False, True])
def test_without_an_end_of_text_a_complete_text_stops(overlap: bool) -> None:
    pool, _ = grammar_pool(pieces=(*tuple(bytes([32 + t]) for t in range(95)), b"", b""), ends=())
    engine = grammar_engine(overlap, pool=pool)
    engine.submit(add(0, [1], max_tokens=30, grammar=choices("no")))
    tokens, finish, messages = turn(engine)
    assert ("".join(chr(32 + t) for t in tokens[0]), finish[0], errors_of(messages)) == ("no", "stop", {})


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("fault", [{"mask_panics": 0}, {"mask_panics": 2}, {"refuses": 1}])
def test_a_matcher_that_fails_ends_its_request_only(overlap: bool, fault: dict) -> None:
    engine = grammar_engine(overlap)
    engine.submit(add(0, [1], max_tokens=30, grammar=choices("yesterday", **fault)))
    engine.submit(add(1, [2], max_tokens=30, grammar=YES_NO))
    engine.submit(add(2, [3], seed=3, max_tokens=6))
    tokens, finish, messages = turn(engine)
    assert finish[0] == "error"
    assert re.search("grammar", errors_of(messages)[0][0])
    assert "yesterday".startswith(text_of(tokens.get(0, []))[:2])
    assert text_of(tokens[1]) in ("yes", "yesterday", "no", "nobody")
    assert tokens[2] == expected([3], 3, 6)
    assert engine._outputs.empty
    assert not engine._constraints._texts


@pytest.mark.parametrize("overlap", [False, True])
def test_failing_steps_take_their_requests_only(overlap: bool) -> None:
    engine = grammar_engine(overlap, max_running=1)
    engine.submit(add(0, [WAIT_RAISES], max_tokens=5, grammar=YES_NO))
    engine.submit(add(1, [2], max_tokens=12, grammar=YES_NO))
    tokens, finish, _ = turn(engine)
    assert finish[0] == "error"
    assert text_of(tokens[1]) in ("yes", "yesterday", "no", "nobody")


# Waiting for grammars


def test_requests_run_while_others_wait_for_their_grammar() -> None:
    gate = threading.Event()
    pool, _ = grammar_pool(gate)
    engine = grammar_engine(pool=pool)
    engine.submit(add(0, [1], max_tokens=9, grammar=choices("no", waits=True)))
    engine.submit(add(1, [2], max_tokens=5))
    finished: set[int] = set()
    for _ in range(20):
        for outputs in engine.step() or ():
            ids, ends = np.frombuffer(outputs.ids, np.int64), np.frombuffer(outputs.finish, np.uint8)
            finished |= set(ids[ends > 0].tolist())
    assert finished == {1}
    assert engine.has_work
    assert engine.stats()["grammar_waiting"] == 1
    gate.set()
    tokens, finish, _ = turn(engine)
    assert (text_of(tokens[0]), finish) == ("no", {0: "stop"})
    assert engine.stats()["grammar_waiting"] == 0


def test_cancelled_while_it_waits() -> None:
    gate = threading.Event()
    pool, _ = grammar_pool(gate)
    engine = grammar_engine(pool=pool)
    for i in (0, 1):
        engine.submit(add(i, [1], max_tokens=9, grammar=choices("no", waits=True)))
    engine.step()
    engine.cancel(0)
    (outputs,) = engine.step() or []
    assert np.frombuffer(outputs.ids, np.int64).tolist() == [0]
    gate.set()
    _, finish, _ = turn(engine)
    assert finish == {1: "stop"}
    engine.submit(add(2, [1], max_tokens=9, grammar=choices("no", waits=True)))
    gate.clear()
    turn(engine)  # the cache has it
    assert pool.stats()["grammar_compiles_total"] == 1


def test_closing_while_a_grammar_is_compiled() -> None:
    gate = threading.Event()
    pool, _ = grammar_pool(gate)
    engine = grammar_engine(pool=pool)
    engine.submit(add(0, [1], grammar=choices("no", waits=True)))
    engine.step()
    gate.set()
    engine.close()
    assert not any(thread.is_alive() for thread in pool._threads)


def test_refused_grammars() -> None:
    engine = grammar_engine(pool=grammar_pool(max_bytes=200)[0])
    engine.submit(add(0, [1], grammar=choices()))
    engine.submit(add(1, [1], grammar=choices("n", breaks=True)))
    engine.submit(add(2, [1], grammar=choices("n", panics=True)))
    engine.submit(add(3, [1], grammar=choices("n" * 300)))
    engine.submit(add(4, [1], max_tokens=5, grammar=choices("ok")))
    _tokens, finish, messages = turn(engine)
    told = errors_of(messages)
    assert finish == {0: "error", 1: "error", 2: "error", 3: "error", 4: "stop"}
    assert told[0][0] == "guided_choice: choice must be a list of texts"
    assert (told[0][1].param, told[0][1].status, told[0][1].kind) == ("guided_choice", 400, "RequestError")
    assert "KeyError" in told[1][0]
    assert told[1][1].kind == "EngineError"
    assert "Panic" in told[2][0]
    assert told[2][1].kind == "EngineError"
    assert told[3][0] == "guided_choice has 304 bytes; at most 200 are allowed"
    assert engine._constraints._texts == {}
    assert engine._constraints._waiting == {}


def test_without_a_backend() -> None:
    engine = engine_fakes.make_engine()
    engine.submit(add(0, [1], grammar=choices("ok")))
    _, finish, messages = drive(engine)
    (text, info) = errors_of(messages)[0]
    assert (finish[0], info.status, info.param) == ("error", 400, "guided_choice")
    assert "no" in text
    assert "core.grammar" not in text
    assert "plugins list --kind grammar" in info.hint


def test_offline() -> None:
    gate = threading.Event()
    offline = OfflineEngine(grammar_engine(pool=grammar_pool(gate)[0]), random_seed=0)
    threading.Timer(0.05, gate.set).start()
    grammar = choices("no", "yes", waits=True)
    requests = [
        EngineRequest(np.array([1], np.int32), SamplingParams(max_tokens=9, grammar=g), Namespace())
        for g in (grammar, None, choices())
    ]
    chunks = offline.generate(requests)
    assert text_of(chunks[0].tokens) in ("no", "yes")
    assert [chunk.finish_reason for chunk in chunks][::2] == ["stop", "error"]
    assert "list of texts" in (chunks[2].error or "")


def test_pieces_are_those_of_the_fakes() -> None:
    assert ids_of("no") == [PIECES.index(b"n"), PIECES.index(b"o")]
    with pytest.raises(RequestError):
        grammar_engine()._constraints.admits(add(0, [1], grammar=GrammarParams(kind="ebnf", text="x")))
