"""Limits: what goes in within any minute, and that nothing leaks however a request ends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.sections import ServerSettings
from core.engine.client import EngineRequest, TokenChunk
from core.interfaces.errors import Overloaded, RequestError
from core.interfaces.params import SamplingParams
from core.server.tenants.engine import TenantEngine
from core.server.tenants.keys import KeyEntry
from core.server.tenants.limits import TokenBucket
from core.server.tenants.table import Tenant
from core.server.tenants.visit import Visit, current_visit


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@given(
    st.floats(0.5, 1000.0),
    st.lists(st.tuples(st.floats(0, 50.0), st.floats(0.01, 400.0)), max_size=60),
)
def test_no_window_lets_more_in_than_a_minute_and_its_refill(rate: float, asked: list[tuple[float, float]]) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, clock)
    taken: list[tuple[float, float]] = []
    for pause_s, amount in asked:
        clock.now_s += pause_s
        wait_s = bucket.wait_s(amount)
        if wait_s == 0:
            bucket.take(amount)
            taken.append((clock.now_s, amount))
        else:
            assert math.isinf(wait_s) == (amount > rate)
    for start, (at_s, _) in enumerate(taken):
        for end_s, _ in taken[start:]:
            total = sum(amount for t, amount in taken[start:] if t <= end_s)
            assert total <= rate + (end_s - at_s) * rate / 60 + 1e-6 * (1 + total)


@given(st.floats(1, 1000), st.floats(0.01, 900), st.floats(0, 500))
def test_after_the_wait_it_can_be_taken(rate: float, amount: float, before: float) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, clock)
    bucket.take(before)
    wait_s = bucket.wait_s(amount)
    if math.isinf(wait_s):
        return
    clock.now_s += wait_s * (1 + 1e-9) + 1e-9
    assert bucket.wait_s(amount) <= 1e-6


def test_a_clock_that_goes_back_gives_nothing() -> None:
    clock = Clock()
    bucket = TokenBucket(60, clock)
    bucket.take(60)
    clock.now_s -= 1000
    assert bucket.level == 0
    clock.now_s += 1001
    assert bucket.level == pytest.approx(1)


class Engine:
    """Streams `tokens` and ends; `fails` before the first."""

    def __init__(self, tokens: int, fails: bool) -> None:
        self.tokens, self.fails = tokens, fails
        self.running = 0

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenChunk]:
        if self.fails:
            raise Overloaded("full")
        self.running += 1
        try:
            for position in range(self.tokens):
                await asyncio.sleep(0)
                yield TokenChunk([7], "length" if position + 1 == self.tokens else None)
        finally:
            self.running -= 1


def request_of(length: int, **sampling: int) -> EngineRequest:
    return EngineRequest(np.arange(length, dtype=np.int32), SamplingParams(**sampling))  # type: ignore[arg-type]


async def _one(tenant: Tenant, length: int, tokens: int, samples: int, leave_after: int | None, fails: bool) -> str:
    """One HTTP request. leave_after: the client goes after so many chunks. Returns how it ended."""
    engine = Engine(tokens, fails)
    limited = TenantEngine.of(engine, ServerSettings(), "m")  # type: ignore[arg-type]
    visit = Visit(tenant)
    token = current_visit.set(visit)
    try:
        prompt = request_of(length)
        streams = [limited.generate(EngineRequest(prompt.prompt, prompt.sampling)) for _ in range(samples)]
        for stream in streams:
            num = 0
            try:
                async for _ in stream:
                    num += 1
                    if num == leave_after:
                        return "left"
            finally:
                await stream.aclose()  # type: ignore[attr-defined]
        return "done"
    except RequestError as error:
        return "refused" if error.status == 429 else "wrong"
    except Overloaded:
        return "failed"
    finally:
        current_visit.reset(token)
        visit.end()
        assert not engine.running


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 120), st.integers(1, 6), st.integers(1, 3), st.one_of(st.none(), st.integers(1, 4)),
            st.booleans(), st.floats(0, 20.0),
        ),
        max_size=25,
    )
)  # fmt: skip
def test_nothing_leaks_however_requests_end(work: list[tuple[int, int, int, int | None, bool, float]]) -> None:
    clock = Clock()
    entry = KeyEntry(name="a", key="k", requests_per_minute=10, tokens_per_minute=100, max_concurrent=3)
    tenant = Tenant(entry, False, clock)
    assert tenant.tokens is not None
    for length, tokens, samples, leave_after, fails, pause_s in work:
        clock.now_s += pause_s
        level, served = tenant.tokens.level, sum(tenant.num_tokens.values())
        ended = asyncio.run(_one(tenant, length, tokens, samples, leave_after, fails))
        assert tenant.concurrent == 0
        if ended in ("refused", "wrong", "failed"):
            assert tenant.tokens.level == pytest.approx(level)
        else:
            # Taken is what was computed, and nothing else: prompt once, tokens as they came.
            assert level - tenant.tokens.level == pytest.approx(sum(tenant.num_tokens.values()) - served)
        if length > 100:
            assert ended != "done"
    clock.now_s += 3600
    assert tenant.tokens.level == 100


def test_concurrency_counts_http_requests() -> None:
    tenant = Tenant(KeyEntry(name="a", key="k", max_concurrent=2), False, Clock())
    first, second, third = Visit(tenant), Visit(tenant), Visit(tenant)
    for _ in range(3):  # samples of one request
        first.take(request_of(3))
    second.take(request_of(3))
    with pytest.raises(RequestError) as caught:
        third.take(request_of(3))
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert third.headers()["retry-after"] == "1"
    third.end()
    assert tenant.concurrent == 2
    first.end()
    first.end()
    assert tenant.concurrent == 1
    Visit(tenant).take(request_of(3))


def test_what_a_key_allows() -> None:
    entry = KeyEntry(name="a", key="k", priority=2, priority_range=(1, 5), max_tokens=8, weight=4.0, models=("m",))
    visit = Visit(Tenant(entry, True, Clock()))
    request = request_of(3)
    visit.take(request)
    assert (request.tenant, request.weight, request.priority, request.sampling.max_tokens) == ("a", 4.0, 2, 8)
    assert request.namespace.salt
    longer = request_of(3, max_tokens=9, min_tokens=9)
    visit.take(longer)
    assert (longer.sampling.max_tokens, longer.sampling.min_tokens) == (8, 8)
    with pytest.raises(RequestError) as caught:
        visit.take(EngineRequest(request.prompt, SamplingParams(), priority=9))
    assert caught.value.status == 400
    visit.check_model("m")
    with pytest.raises(RequestError) as caught:
        visit.check_model("other")
    assert caught.value.status == 403


@pytest.mark.parametrize(("header", "own", "expected"), [("2.5", None, 2.5), ("3", 1.0, 1.0), ("1", 4.0, 1.0)])
def test_the_header_shortens(header: str, own: float | None, expected: float) -> None:
    request = request_of(3)
    request.timeout_s = own
    Visit(None, header).take(request)
    assert request.timeout_s == expected


@pytest.mark.parametrize("header", ["", "soon", "0", "-1", "nan", "inf"])
def test_a_header_that_is_no_time(header: str) -> None:
    with pytest.raises(RequestError, match="x-request-timeout"):
        Visit(None, header).take(request_of(3))
