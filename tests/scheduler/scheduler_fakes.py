"""A model without a model: its KV cells hold a hash of every token before, and so does its next token."""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass

import numpy as np

from core.config.sections import SchedulerSettings
from core.interfaces.context import PluginContext
from core.interfaces.params import SamplingParams
from core.interfaces.prefix_cache import CacheGeometry
from core.interfaces.schedule import SchedulePolicy
from core.interfaces.step import Admission, StepPlan, StepResult
from core.memory.manager import MemoryManager
from core.memory.no_cache import NoCache
from core.memory.radix import RadixCache
from core.registry import Catalog
from core.scheduler.events import StepEvents
from core.scheduler.facts import Finish, ModelFacts
from core.scheduler.request import Request
from core.scheduler.scheduler import Scheduler

VOCAB = 7
EOS = 0
CATALOG = Catalog.scan(groups=["core.schedule_policies"])


def make_policy(name: str, seed: int = 0) -> SchedulePolicy:
    """An installed policy, by its entry point's name."""
    return CATALOG.load("schedule_policies", name)(PluginContext(), seed)


def cell(namespace: bytes, before: int, token: int) -> int:
    """What KV of a token depends on: the namespace and every token up to it."""
    return zlib.crc32(namespace + before.to_bytes(8, "little") + token.to_bytes(8, "little"))


def sample(cells: list[int]) -> int:
    return zlib.crc32(np.array(cells, np.int64).tobytes()) % VOCAB


def unloaded(request: Request, prompt: list[int], max_len: int) -> tuple[list[int], Finish]:
    """What the request yields when it runs alone, with all the memory in the world."""
    tokens = list(prompt)
    cells: list[int] = []
    stops = () if request.sampling.ignore_eos else request.eos_token_ids
    stops = (*stops, *request.sampling.stop_token_ids)
    limit = max_len if request.sampling.max_tokens is None else min(max_len, len(prompt) + request.sampling.max_tokens)
    while True:
        for token in tokens[len(cells) :]:
            cells.append(cell(request.namespace, cells[-1] if cells else 0, token))
        tokens.append(sample(cells))
        done = len(tokens) - len(prompt)
        if tokens[-1] in stops and done >= request.sampling.min_tokens:
            return tokens[len(prompt) :], Finish.STOP
        if len(tokens) >= limit:
            return tokens[len(prompt) :], Finish.LENGTH


@dataclass
class _Launched:
    plan: StepPlan
    tokens: list[int]
    written: set[tuple[int, int]]  # (group, page)
    read: set[tuple[int, int]]
    owners: dict[int, int]  # slot -> request id


class FakeRunner:
    """Mirrors the request table from plans alone, keeps "KV" in pages, and checks what a device would suffer from:
    a page or slot that a step in flight touches must not be written for another request."""

    def __init__(self, facts: ModelFacts) -> None:
        self.page_size = facts.page_size
        self.chunk_tokens = facts.chunk_tokens
        self.table = np.zeros((facts.num_groups, facts.max_running, facts.max_pages), np.int64)
        self.kv = np.full((facts.num_groups, facts.num_pages, facts.page_size), -1, np.int64)
        self.tokens: list[list[int]] = [[] for _ in range(facts.max_running)]
        self.admitted: list[Admission | None] = [None] * facts.max_running
        self.namespaces: dict[int, bytes] = {}
        self.in_flight: deque[_Launched] = deque()

    def launch(self, plan: StepPlan) -> None:
        assert plan.num_tokens <= self.chunk_tokens
        assert (plan.q_lens >= 1).all()
        assert len(set(plan.slots.tolist())) == len(plan.slots)
        busy_slots = {slot: owner for step in self.in_flight for slot, owner in step.owners.items()}
        for admission in plan.admissions:
            assert busy_slots.get(admission.slot) is None, "slot reused before its fence"
            self.admitted[admission.slot] = admission
            self.tokens[admission.slot] = admission.token_ids.tolist()
            self.table[:, admission.slot] = 0
        self.table[:, plan.page_slots, plan.page_index] = plan.page_ids
        launched = _Launched(plan, [], set(), set(), {})
        for row in range(len(plan.slots)):
            self._run_row(launched, row)
        self.in_flight.append(launched)

    def _run_row(self, launched: _Launched, row: int) -> None:
        plan = launched.plan
        slot, end = int(plan.slots[row]), int(plan.seq_lens[row])
        start = end - int(plan.q_lens[row])
        admission = self.admitted[slot]
        assert admission is not None
        if row < plan.num_decodes:
            assert plan.q_lens[row] == 1
            assert plan.samples[row]
        namespace = self.namespaces[admission.request_id]
        launched.owners[slot] = admission.request_id
        tokens = self.tokens[slot]
        histories = []
        for group in range(len(self.table)):
            pages = self.table[group, slot, : -(-end // self.page_size)]
            assert (pages > 0).all(), "the null page was given out"
            for position in range(start, end):
                page, offset = int(pages[position // self.page_size]), position % self.page_size
                self._check_write(launched, group, page, slot, admission.request_id)
                before = position - 1
                previous = self.kv[group, pages[before // self.page_size], before % self.page_size] if position else 0
                self.kv[group, page, offset] = cell(namespace, int(previous), tokens[position])
                launched.written.add((group, page))
            launched.read.update((group, int(page)) for page in pages)
            flat = self.kv[group, pages].reshape(-1)[:end]
            histories.append(flat.tolist())
        assert all(history == histories[0] for history in histories), "groups differ"
        if plan.samples[row]:
            token = sample(histories[0])
            launched.tokens.append(token)
            tokens.append(token)  # the device's last token: the host need not know it yet
            assert len(tokens) == end + 1

    def _check_write(self, launched: _Launched, group: int, page: int, slot: int, request_id: int) -> None:
        for step in self.in_flight:
            if (group, page) in step.read:
                assert step.owners.get(slot) == request_id, "page rewritten before its fence"
        assert (group, page) not in launched.read, "page written by two rows of a step"

    def wait(self, failed: set[int] = frozenset()) -> StepResult:
        """The oldest step's result; rows of the request ids in `failed` are not finite."""
        launched = self.in_flight.popleft()
        slots = launched.plan.slots[launched.plan.samples]
        bad = np.array([launched.owners[int(slot)] in failed for slot in slots], np.bool_)
        tokens = np.array(launched.tokens, np.int32).reshape(-1, 1)
        return StepResult(launched.plan.step, slots, tokens, np.ones(len(slots), np.int32), bad)


class Bench:
    """Scheduler, memory and fake runner; collects what clients would see."""

    def __init__(
        self,
        *,
        cache: str = "radix",
        num_pages: int = 65,
        page_size: int = 4,
        num_groups: int = 1,
        chunk_tokens: int = 64,
        max_running: int = 8,
        context_length: int = 128,
        policy: str | SchedulePolicy = "fcfs",
        eviction: str = "lru",
        max_queued: int = 1024,
        shuffle: int | None = None,
        **scheduling: object,
    ) -> None:
        """scheduling: further SchedulerSettings. The clock stands still unless `now_s` is moved."""
        self.now_s = 1.0
        self.facts = ModelFacts(context_length, num_pages, page_size, chunk_tokens, max_running, num_groups)
        kind = {"radix": RadixCache, "none": NoCache}[cache]
        self.memory = MemoryManager(
            kind(CacheGeometry(page_size, num_groups, eviction), PluginContext()),
            num_pages=num_pages,
            page_size=page_size,
            num_slots=max_running,
            max_pages=self.facts.max_pages,
            num_groups=num_groups,
        )
        if shuffle is not None:  # groups must not happen to use the same page numbers
            for group in range(num_groups):
                np.random.default_rng(shuffle + group).shuffle(self.memory.pool._free[group])
        settings = SchedulerSettings(max_running_requests=max_running, max_queued_requests=max_queued, **scheduling)
        made = make_policy(policy) if isinstance(policy, str) else policy
        self.scheduler = Scheduler(settings, self.facts, self.memory, lambda: self.now_s, made)
        self.runner = FakeRunner(self.facts)
        self.requests: dict[int, Request] = {}
        self.prompts: dict[int, list[int]] = {}
        self.output: dict[int, list[int]] = {}
        self.finish: dict[int, Finish] = {}
        self.cached: dict[int, int] = {}
        self.plans: list[StepPlan] = []

    def add(
        self,
        prompt: list[int],
        *,
        namespace: bytes = b"",
        priority: int = 0,
        tenant: str = "",
        weight: float = 1.0,
        timeout_s: float | None = None,
        **sampling: object,
    ) -> int:
        request_id = len(self.requests)
        request = Request(
            request_id,
            np.array(prompt, np.int32),
            SamplingParams(**{"max_tokens": 8, "ignore_eos": True, **sampling}),
            seed=0,
            namespace=namespace,
            priority=priority,
            eos_token_ids=(EOS,),
            tenant=tenant,
            weight=weight,
            timeout_s=timeout_s,
        )
        self.scheduler.add(request)
        self.runner.namespaces[request_id] = namespace
        self.requests[request_id], self.prompts[request_id] = request, list(prompt)
        self.output[request_id] = []
        return request_id

    def launch(self) -> bool:
        plan = self.scheduler.schedule()
        if plan is not None:
            self.plans.append(plan)
            self.runner.launch(plan)
        return plan is not None

    def complete(self, failed: set[int] = frozenset()) -> StepEvents:
        events = self.scheduler.complete(self.runner.wait(failed))
        self.take(events)
        return events

    def take(self, events: StepEvents | None) -> None:
        if events is None:
            return
        ids = events.ids.tolist()
        assert len(set(ids)) == len(ids), "a request twice in one step"
        for i, request_id in enumerate(ids):
            assert request_id not in self.finish, "an event after the finish"
            if events.tokens[i] >= 0:
                assert (i in events.first) == (not self.output[request_id])
                self.output[request_id].append(int(events.tokens[i]))
            if i in events.first:
                self.cached[request_id] = events.first[i]
            if events.finish[i]:
                self.finish[request_id] = Finish(events.finish[i])
            assert (i in events.errors) == (events.finish[i] == Finish.ERROR)

    def step(self, depth: int = 0, failed: set[int] = frozenset()) -> bool:
        """One turn of the engine's loop; at most `depth` steps stay in flight."""
        launched = self.launch()
        if self.runner.in_flight and (len(self.runner.in_flight) > depth or not launched):
            self.complete(failed)
            return True
        events = self.scheduler.take_events()
        self.take(events)
        return launched or events is not None

    def drain(self, depth: int = 0) -> None:
        for _ in range(100_000):
            if not self.scheduler.has_work:
                break
            assert self.step(depth), "work, but no step"
        assert not self.scheduler.has_work
        self.check_idle()

    def check_idle(self) -> None:
        """Nothing is leaked."""
        self.memory.check_all()
        stats = self.memory.stats()
        assert self.memory.idle
        assert stats.free + stats.cached == stats.total
        assert stats.evictable == stats.cached
        assert self.memory.pending_pages == 0
        assert self.scheduler.table.num_free == self.facts.max_running
        assert not self.scheduler.table.state.any()
        assert set(self.finish) == set(self.requests)

    def check_output(self, request_id: int) -> None:
        """What came is what the unloaded run gives, or its beginning if the request was cut short."""
        expected, finish = unloaded(self.requests[request_id], self.prompts[request_id], self.scheduler.max_len)
        output = self.output[request_id]
        if self.finish[request_id] in (Finish.ABORT, Finish.ERROR):
            assert output == expected[: len(output)]
        else:
            assert (output, self.finish[request_id]) == (expected, finish)
