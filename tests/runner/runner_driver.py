"""A scheduler for tests: random chunks, shuffled pages, reused slots, and overlap by planning ahead of results.

It knows how many tokens each request gets, so it never needs a token to plan, which is what the runner promises.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from core.interfaces.params import SamplingParams
from core.interfaces.step import Admission, StepPlan, StepResult
from core.runner.executor import Executor, StepHandle


@dataclass
class Job:
    """One request: prompt in, `tokens` out. preempt_at: put back once after so many tokens."""

    prompt: list[int]
    num_tokens: int
    params: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0))
    seed: int = 0
    preempt_at: int | None = None
    tokens: list[int] = field(default_factory=list)
    results: list[tuple[StepResult, int]] = field(default_factory=list)
    slot: int = -1
    known: int = 0  # tokens it was admitted with
    computed: int = 0  # tokens whose KV is written or planned
    planned: int = 0  # tokens sampled or planned to be
    pages: list[list[int]] = field(default_factory=list)


class Driver:
    """Runs jobs through an executor; `depth` steps are in flight at once."""

    def __init__(
        self,
        executor: Executor,
        *,
        num_groups: int = 1,
        num_slots: int = 8,
        num_pages: int,
        page_size: int = 4,
        budget: int = 16,
        depth: int = 1,
        seed: int = 0,
    ) -> None:
        self.executor, self.page_size, self.budget, self.depth = executor, page_size, budget, depth
        self.random = random.Random(seed)
        self.free_slots = list(range(num_slots))
        self.free_pages = [list(range(1, num_pages)) for _ in range(num_groups)]
        for free in (self.free_slots, *self.free_pages):
            self.random.shuffle(free)
        self.running: list[Job] = []
        self.in_flight: deque[tuple[StepHandle, list[Job]]] = deque()
        self.steps = 0

    def run(self, jobs: list[Job]) -> None:
        waiting = deque(jobs)
        while waiting or self.running or self.in_flight:
            plan_made = self._launch(waiting)
            if len(self.in_flight) >= self.depth or not plan_made:
                self._complete(waiting)

    def _launch(self, waiting: deque[Job]) -> bool:
        rows: list[tuple[Job, int]] = []
        admissions: list[Admission] = []
        updates: list[tuple[int, int, list[int]]] = []
        budget = self.budget
        active = [job for job in self.running if job.planned < self._target(job)]
        decodes = [job for job in active if job.computed >= job.known]
        self.random.shuffle(decodes)
        for job in decodes:
            rows.append((job, 1))
            budget -= 1
        for job in [job for job in active if job.computed < job.known]:
            if budget > 0:
                take = self.random.randint(1, min(budget, job.known - job.computed))
                rows.append((job, take))
                budget -= take
        while waiting and self.free_slots and budget > 0:
            job = waiting.popleft()
            job.slot, tokens = self.free_slots.pop(), job.prompt + job.tokens
            job.known, job.computed, job.planned = len(tokens), 0, len(job.tokens)
            job.pages = [[] for _ in self.free_pages]
            take = self.random.randint(1, min(budget, job.known))
            ids = np.array(tokens, np.int32)
            admissions.append(Admission(job.slot, id(job), ids, len(job.prompt), job.params, job.seed))
            self.running.append(job)
            rows.append((job, take))
            budget -= take
        if not rows:
            return False
        for job, take in rows:
            while len(job.pages[0]) * self.page_size < job.computed + take:
                new = [free.pop() for free in self.free_pages]
                updates.append((job.slot, len(job.pages[0]), new))
                for pages, page in zip(job.pages, new, strict=True):
                    pages.append(page)
            job.computed += take
        sampled = [job for job, _ in rows if job.computed >= job.known]
        for job in sampled:
            job.planned += 1
        plan = StepPlan(
            step=self.steps,
            slots=np.array([job.slot for job, _ in rows], np.int32),
            num_decodes=len(decodes),
            q_lens=np.array([take for _, take in rows], np.int32),
            seq_lens=np.array([job.computed for job, _ in rows], np.int32),
            samples=np.array([job.computed >= job.known for job, _ in rows]),
            admissions=admissions,
            page_slots=np.array([slot for slot, _, _ in updates], np.int32),
            page_index=np.array([index for _, index, _ in updates], np.int32),
            page_ids=np.array([ids for _, _, ids in updates], np.int32).reshape(-1, len(self.free_pages)).T,
        )
        self.steps += 1
        self.in_flight.append((self.executor.launch(plan), sampled))
        return True

    def _target(self, job: Job) -> int:
        return job.num_tokens if job.preempt_at is None else job.preempt_at

    def _complete(self, waiting: deque[Job]) -> None:
        if not self.in_flight:
            return
        handle, sampled = self.in_flight.popleft()
        result = handle.wait()
        assert result.error is None, result.error
        assert result.slots.tolist() == [job.slot for job in sampled]
        assert not result.failed.any()
        for row, job in enumerate(sampled):
            job.tokens.append(int(result.tokens[row, 0]))
            job.results.append((result, row))
            if len(job.tokens) == self._target(job):
                self._leave(job, waiting)

    def _leave(self, job: Job, waiting: deque[Job]) -> None:
        self.running.remove(job)
        self.free_slots.insert(self.random.randint(0, len(self.free_slots)), job.slot)
        for free, pages in zip(self.free_pages, job.pages, strict=True):
            free.extend(pages)
            self.random.shuffle(free)
        if job.preempt_at is not None:
            job.preempt_at = None
            waiting.appendleft(job)
