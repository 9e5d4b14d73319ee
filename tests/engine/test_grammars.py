"""The pool that compiles grammars: its cache, its limits, threads that are lost and come back."""

from __future__ import annotations

import json
import threading
import time

import pytest
from grammar_fakes import ChoiceBackend, choices, grammar_pool

from core.engine.grammar_cache import ENTRY_BYTES, Grammar, GrammarCache
from core.engine.grammar_source import MAX_DEPTH, check_depth, schemas_of
from core.engine.grammars import GrammarPool
from core.engine.vocabulary import Vocabularies
from core.interfaces.errors import CoreError, EngineError, Overloaded, RequestError
from core.interfaces.params import GrammarParams


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def settle(pool: GrammarPool, count: int = 1) -> list[tuple[int, Grammar | CoreError]]:
    """The next `count` results."""
    told = []
    for _ in range(1000):
        told += pool.take()
        if len(told) >= count:
            return told
        pool.wait(0.01)
    raise AssertionError("nothing came")


def taken(pool: GrammarPool) -> None:
    """Wait until every job but one that waits for a thread has begun."""
    for _ in range(2000):
        if all(job.started_s is not None for job in list(pool._jobs.values())[: len(pool._threads)]):
            return
        time.sleep(0.001)
    raise AssertionError("no thread took it")


def test_one_compile_for_all_who_ask() -> None:
    pool, made = grammar_pool()
    assert [pool.ask(i, choices("a", "b")) for i in range(3)] == [None] * 3
    told = settle(pool, 3)
    assert [i for i, _ in told] == [0, 1, 2]
    assert len({id(grammar) for _, grammar in told}) == 1
    assert pool.ask(4, choices("a", "b")) is told[0][1]
    assert made[0].compiled == ['["a", "b"]']
    assert len(made) == 1
    assert pool.stats()["grammar_cache_hits_total"] == 1
    pool.close()


def test_a_compile_that_takes_too_long() -> None:
    gate, clock = threading.Event(), Clock()
    pool, made = grammar_pool(gate, clock, timeout_s=5, threads=1)
    pool.ask(0, choices("a", waits=True))
    taken(pool)
    pool.ask(1, choices("b"))  # waits for the one thread
    clock.now_s += 4
    assert pool.take() == []
    clock.now_s += 2
    told = dict(pool.take())
    assert isinstance(told[0], RequestError)
    assert "longer than 5 s" in str(told[0])
    assert told[0].param == "regex"
    assert isinstance(told[1], Overloaded)
    with pytest.raises(Overloaded, match="stuck"):
        pool.ask(2, choices("c"))
    assert (pool.stats()["grammar_threads_lost"], pool.stats()["grammar_timeouts_total"]) == (1, 1)
    assert pool.num_waiting == 0
    assert not pool._jobs

    gate.set()  # the thread comes back, and what it made is kept
    for _ in range(1000):
        pool.take()
        if not pool._lost:
            break
        pool.wait(0.01)
    assert pool.ask(3, choices("a", waits=True)) is not None
    pool.ask(4, choices("d"))
    assert isinstance(settle(pool)[0][1], Grammar)
    assert made[0].compiled[-1] == '["d"]'
    assert '["b"]' not in made[0].compiled
    pool.close()


def test_waiting_for_a_thread_has_an_end() -> None:
    gate, clock = threading.Event(), Clock()
    pool, _ = grammar_pool(gate, clock, timeout_s=5, threads=1)
    pool.ask(0, choices("a", waits=True))
    taken(pool)
    clock.now_s += 3
    pool.ask(1, choices("b"))
    pool.ask(2, choices("b"))
    assert pool.drop(2)
    assert not pool.drop(2)
    clock.now_s += 6
    told = dict(pool.take())
    assert set(told) == {0, 1}
    assert isinstance(told[1], Overloaded)
    gate.set()
    pool.close()


def test_limits_of_what_waits() -> None:
    gate = threading.Event()
    pool, _ = grammar_pool(gate, max_waiting=2, threads=1)
    pool.ask(0, choices("a", waits=True))
    pool.ask(1, choices("b"))
    with pytest.raises(Overloaded, match="2 requests wait"):
        pool.ask(2, choices("b"))
    gate.set()
    settle(pool, 2)
    pool.close()


def test_a_grammar_that_everybody_left_is_not_compiled() -> None:
    gate = threading.Event()
    pool, made = grammar_pool(gate, threads=1)
    pool.ask(0, choices("a", waits=True))
    taken(pool)
    pool.ask(1, choices("b"))
    assert pool.drop(1)
    gate.set()
    settle(pool)
    pool.close()
    assert made[0].compiled == [choices("a", waits=True).text]


def test_a_backend_that_cannot_be_made() -> None:
    pool, _ = grammar_pool()

    def broken(vocabulary):
        raise OSError("no such library")

    pool.backends._make = broken
    pool.ask(0, choices("a"))
    (_, error) = settle(pool)[0]
    assert isinstance(error, EngineError)
    assert "no such library" in str(error)
    pool.close()


def test_which_schema_of_a_structure_is_wrong() -> None:
    node = {"type": "tag", "begin": "<", "end": ">"}
    tags = [{**node, "content": {"type": "json_schema", "json_schema": schema}} for schema in ({}, {}, {"wrong": 1})]
    text = json.dumps({"type": "tags_with_separator", "tags": tags, "separator": ""})
    pool, _ = grammar_pool()
    fields = ("tools[0].function.parameters", "tools[2].function.parameters")
    pool.ask(0, GrammarParams(kind="structural_tag", text=text, param="tools", schemas=fields))
    error = settle(pool)[0][1]
    assert isinstance(error, RequestError)
    assert error.param == "tools[2].function.parameters"
    assert error.message == "tools[2].function.parameters: $.wrong is not supported"
    pool.ask(1, GrammarParams(kind="structural_tag", text='{"wrong": 1}', param="tools", schemas=fields))
    error = settle(pool)[0][1]
    assert isinstance(error, RequestError)
    assert (error.param, error.message[:7]) == ("tools", "tools: ")
    pool.close()


def test_schemas_are_found_once_each() -> None:
    one, two = {"type": "json_schema", "json_schema": {"a": 1}}, {"type": "json_schema", "json_schema": {"b": [1]}}
    assert list(schemas_of({"elements": [two, {"content": one}, two]})) == [{"b": [1]}, {"a": 1}]


@pytest.mark.parametrize(
    ("kind", "text", "deep"),
    [
        ("json_schema", "[" * 300, True),
        ("json_schema", json.dumps({"const": "[" * 300}), False),
        ("json_schema", json.dumps({"const": '"' + "[" * 300}), False),
        ("regex", "(" * 300 + ")" * 300, True),
        ("regex", r"\(" * 300, False),
        ("ebnf", "root ::= " + "(" * 300, True),
        ("regex", "()" * 300, False),
    ],
)
def test_depth(kind: str, text: str, deep: bool) -> None:
    params = GrammarParams(kind=kind, text=text)
    if deep:
        with pytest.raises(RequestError, match=f"more than {MAX_DEPTH} deep"):
            check_depth(params)
    else:
        check_depth(params)


def test_the_cache_forgets_what_was_not_asked_for_longest() -> None:
    def grammar(size: int) -> Grammar:
        return Grammar(None, None, size)  # type: ignore[arg-type]

    cache = GrammarCache(4 * ENTRY_BYTES)
    first, second = grammar(0), grammar(ENTRY_BYTES - 1)
    cache.put(("choice", ""), first)
    cache.put(("choice", "x"), second)
    assert cache.num_bytes == 3 * ENTRY_BYTES
    assert cache.get(("choice", "")) is first
    cache.put(("regex", ""), grammar(ENTRY_BYTES))  # 2: more than fits
    assert cache.get(("choice", "x")) is None
    assert cache.get(("choice", "")) is first
    assert len(cache) == 2
    cache.put(("regex", "large"), grammar(9 * ENTRY_BYTES))
    assert cache.get(("regex", "large")) is None
    assert len(cache) == 2
    cache.put(("choice", ""), grammar(1))
    assert cache.num_bytes == ENTRY_BYTES + 1 + 2 * ENTRY_BYTES


def test_special_tokens_are_text_in_structures_only() -> None:
    pieces = [b"a", b"<eos>", b"[CALL]"]
    made = Vocabularies.from_pieces(pieces, (1,), frozenset({1, 2}))
    assert (made.plain.tokens, made.tagged.tokens) == ((b"a", b"", b""), (b"a", b"", b"[CALL]"))
    assert made.pieces == pieces
    assert made.plain.eos_token_ids == (1,)
    same = Vocabularies.from_pieces(pieces, (1,), frozenset({1}))
    assert same.plain is same.tagged
    pool, backends = grammar_pool(pieces=pieces, ends=(1,))
    assert pool.backends.of("choice") is pool.backends.of("structural_tag")
    assert len(backends) == 1
    assert isinstance(backends[0], ChoiceBackend)
