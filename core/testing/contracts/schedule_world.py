"""Queues for the contract of schedule policies: made-up requests that count how often they are looked at, and a real
scheduler whose steps are computed by nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.config.sections import SchedulerSettings
from core.interfaces.context import PluginContext
from core.interfaces.params import SamplingParams
from core.interfaces.prefix_cache import CacheGeometry, CacheKey, MatchResult
from core.interfaces.schedule import SchedulePolicy
from core.interfaces.step import StepPlan, StepResult
from core.memory.manager import MemoryManager
from core.memory.no_cache import NoCache
from core.memory.radix import RadixCache
from core.scheduler.facts import Finish, ModelFacts
from core.scheduler.request import Request
from core.scheduler.scheduler import Scheduler

_OFFERED = ("id", "num_prompt", "max_len", "priority", "arrival_s", "key")


class Waiting:
    """What the interface says that a policy sees of a request, read-only, and nothing else. looks: attributes read."""

    __slots__ = ("_cached", "_values", "looks")

    def __init__(self, number: int, num_prompt: int, num_output: int, cached_pages: int, arrival_s: float) -> None:
        tokens = np.full(num_prompt, number % 1000, np.int32)
        values = (number, num_prompt, num_prompt + num_output, 0, arrival_s, CacheKey(b"", tokens))
        object.__setattr__(self, "_values", dict(zip(_OFFERED, values, strict=True)))
        object.__setattr__(self, "_cached", cached_pages)
        object.__setattr__(self, "looks", 0)

    def __getattr__(self, name: str) -> Any:
        if name not in _OFFERED:
            raise AttributeError(f"a waiting request offers {', '.join(_OFFERED)}, not {name!r}")
        object.__setattr__(self, "looks", self.looks + 1)
        return self._values[name]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a waiting request is not to be changed ({name})")

    @property
    def cached_pages(self) -> int:
        return int(self._cached)

    def values(self) -> tuple[Any, ...]:
        """All of it, without counting as a look; the key by its object."""
        return tuple(id(value) if name == "key" else value for name, value in self._values.items())


class World:
    """waiting: in first-come order. match: as the prefix cache's, for these requests; after `most_matches` calls it
    fails. Pages of one prefix are numbered alike for all."""

    def __init__(self, waiting: list[Waiting], page_size: int) -> None:
        self.waiting = waiting
        self.most_matches: int | None = None
        self.num_matches = 0
        self._page_size = page_size
        self._cached = {id(request._values["key"]): request.cached_pages for request in waiting}

    def match(self, key: CacheKey) -> MatchResult:
        self.num_matches += 1
        if self.most_matches is not None and self.num_matches > self.most_matches:
            raise AssertionError(f"match() was called more than {self.most_matches} times for {len(self.waiting)}")
        assert id(key) in self._cached, "match() takes the key of a waiting request"
        pages = np.arange(1, 1 + self._cached[id(key)], dtype=np.int32).reshape(1, -1)
        return MatchResult(pages.shape[1] * self._page_size, pages)


def drain(
    policy: SchedulePolicy,
    requests: Sequence[tuple[list[int], int, int]],
    *,
    cache: str,
    max_running: int = 3,
    max_bypasses: int | None = None,
    keep_waiting: int | None = None,
) -> list[int]:
    """Run all requests (prompt, tokens to generate, priority) to their end; returns ids in the order of their first
    admission. Fails if one is lost, if nothing can run, if a step is too large, or if core switched the policy off.

    keep_waiting: requests arrive while others run, so that so many wait; None: all are there at once.
    """
    facts = ModelFacts(context_length=64, num_pages=24, page_size=4, chunk_tokens=12, max_running=max_running)
    kind = {"radix": RadixCache, "none": NoCache}[cache]
    memory = MemoryManager(
        kind(CacheGeometry(4), PluginContext()),
        num_pages=24, page_size=4, num_slots=max_running, max_pages=facts.max_pages,
    )  # fmt: skip
    scheduler = Scheduler(SchedulerSettings(max_running_requests=max_running), facts, memory, policy=policy)
    if max_bypasses is not None:
        scheduler.policy.max_bypasses = max_bypasses
    arriving = list(enumerate(requests))
    admitted: list[int] = []
    finished: set[int] = set()
    while len(finished) < len(requests):
        while arriving and (keep_waiting is None or len(scheduler.queue) < keep_waiting):
            number, (prompt, num_tokens, priority) = arriving.pop(0)
            sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
            scheduler.add(Request(number, np.array(prompt, np.int32), sampling, number, priority=priority))
        plan = scheduler.schedule()
        assert plan is not None, f"requests {sorted(set(range(len(requests))) - finished)} wait and nothing runs"
        assert plan.num_tokens <= facts.chunk_tokens
        admitted += [a.request_id for a in plan.admissions if a.request_id not in admitted]
        events = scheduler.complete(_answer(plan))
        finished.update(events.ids[events.finish == Finish.LENGTH].tolist())
        assert not scheduler.policy.failure, scheduler.policy.failure
    assert sorted(admitted) == list(range(len(requests)))
    memory.check_all()
    return admitted


def _answer(plan: StepPlan) -> StepResult:
    """Tokens that end nothing."""
    slots = plan.slots[plan.samples]
    count = len(slots)
    tokens = np.full((count, 1), 77, np.int32)
    return StepResult(plan.step, slots, tokens, np.ones(count, np.int32), np.zeros(count, np.bool_))
