"""Scheduler: which request gets how many tokens in the next step.

One token budget a step. Running decodes come first, then chunks of prompts under way, then admissions. State is
in RequestTable, as arrays by slot: a step of decodes alone loops over requests only where one needs a page,
finishes or fails. Before all that, requests whose time is over end, and running ones may give way to waiting ones
of higher priority. `schedule` may be called before the last step is complete; nothing a step in flight touches
is given to anyone else until it has completed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from core.config.sections import SchedulerSettings
from core.interfaces.context import PluginContext
from core.interfaces.errors import CoreError, EngineError, Overloaded, RequestError
from core.interfaces.schedule import SchedulePolicy, StepLoad
from core.interfaces.step import StepPlan, StepResult
from core.memory.manager import MemoryManager
from core.scheduler.admission import AdmissionPlanner
from core.scheduler.checks import check_request
from core.scheduler.chunks import PromptChunks
from core.scheduler.completion import TakenTokens, take_tokens
from core.scheduler.deadlines import Deadlines, Limit, expired
from core.scheduler.events import StepEvents
from core.scheduler.facts import ModelFacts
from core.scheduler.fairness import TenantShares
from core.scheduler.plan import Flight, Int32, PlanBuilder
from core.scheduler.policies import Fcfs
from core.scheduler.policy import AdmissionOrder
from core.scheduler.preemption import PriorityPreemption, least_important
from core.scheduler.queue import WaitingQueue
from core.scheduler.request import Request
from core.scheduler.sharing import PromptSharing
from core.scheduler.table import DECODE, PREFILL, RequestTable

NOT_FINITE = "the model's output was not finite; this request cannot go on"


class Scheduler:
    """One engine's scheduler. Called from one thread.

    `memory` has `facts.max_running` slots and `facts.max_pages` columns. clock: seconds, monotonic. policy: which
    waiting request is next; None is first come, first served.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        facts: ModelFacts,
        memory: MemoryManager,
        clock: Callable[[], float] = time.monotonic,
        policy: SchedulePolicy | None = None,
    ) -> None:
        expected = (facts.num_groups, facts.max_running, facts.max_pages)
        if memory.page_table.shape != expected or memory.capacity != facts.num_pages - 1:
            raise ValueError(f"memory has a page table of shape {memory.page_table.shape}, facts say {expected}")
        self.settings = settings
        self.facts = facts
        self.memory = memory
        # KV of the last token is never needed, so a text may be one token longer than the memory.
        self.max_len = min(facts.context_length, memory.capacity * facts.page_size + 1)
        self.table = RequestTable(facts.max_running, memory.page_table, self.max_len)
        self.queue = WaitingQueue()
        self.shares = TenantShares()
        self.policy = AdmissionOrder(
            policy or Fcfs(PluginContext()),
            facts.chunk_tokens,
            low_priority_share=settings.low_priority_share,
            shares=self.shares,
        )
        self.sharing = PromptSharing(facts.page_size)
        self._clock = clock
        self._requests: dict[int, Request] = {}
        self._chunks = PromptChunks(self.table)
        self._computed: list[Request] = []  # whose prompts are complete, and not published yet
        self._row_numbers = np.arange(facts.max_running, dtype=np.int32)
        self._in_flight: deque[Flight] = deque()
        self._ended: list[tuple[int, CoreError | None]] = []  # without a step; None: cancelled
        self._deadlines = Deadlines()
        self._preemption = PriorityPreemption(settings) if settings.priority_preemption else None
        self._step = 0
        self._passed = -1
        self._order = 0
        self._last_tokens, self._last_step_s = 0, 0.0
        self._counters = dict.fromkeys(
            ("steps", "prompt_tokens", "hit_tokens", "generated_tokens", "preemptions", "displaced", "finished",
             "aborted", "timed_out"), 0,
        )  # fmt: skip
        self._admissions = AdmissionPlanner(
            self.table, self.queue, memory, self.policy, self.sharing, self.shares, self._chunks, self._counters
        )

    # ---- requests come and go

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError if it can never run, Overloaded if the queue is full."""
        if request.id in self._requests:
            raise RequestError(f"request id {request.id} is in use", param="id", hint="use another id")
        check_request(request, self.facts, self.memory)
        if len(self.queue) >= self.settings.max_queued_requests:
            raise Overloaded(f"{len(self.queue)} requests are waiting, which is max_queued_requests")
        length, max_tokens = request.num_prompt, request.sampling.max_tokens
        request.max_len = self.max_len if max_tokens is None else min(length + max_tokens, self.max_len)
        if request.pooling is not None:
            request.max_len = length + 1
        if self.settings.schedule_low_priority_values_first:
            request.priority = -request.priority
        request.arrival_s = request.arrival_s or self._clock()
        request.order = self._order
        self._order += 1
        self._requests[request.id] = request
        self.shares.arrived(request.tenant, request.weight)
        self._enqueue(request)
        limits = ((request.timeout_s, Limit.WHOLE), (self.settings.max_queue_s, Limit.QUEUE))
        for seconds, limit in limits:
            if seconds is not None:
                self._deadlines.push(request.arrival_s + seconds, request.id, limit, self._requests)

    def cancel(self, request_id: int) -> bool:
        """End a request at any moment. Its one finish event, "abort", comes with `take_events` or the next
        `complete`. False if the id is unknown or has finished."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._end(request, None)
        self._counters["aborted"] += 1
        return True

    def _end(self, request: Request, error: CoreError | None) -> None:
        """Without a step, by `error` or a cancellation."""
        del self._requests[request.id]
        if request.slot < 0:
            self._dequeue(request)
        else:
            self._release(request, publish=True)
        self.shares.ended(request.tenant)
        self._ended.append((request.id, error))

    def _enqueue(self, request: Request) -> None:
        self.shares.waits(request.tenant)
        self.queue.push(request)

    def _dequeue(self, request: Request) -> None:
        self.queue.remove(request)
        self.shares.leaves_queue(request.tenant)

    def _expire(self) -> None:
        """End requests whose time is over."""
        if not self._deadlines.pending:
            return
        now_s = self._clock()
        for request_id, limit in self._deadlines.due(now_s):
            request = self._requests.get(request_id)
            error = None if request is None else expired(request, limit, now_s, self.settings.max_queue_s)
            if request is not None and error is not None:
                self._end(request, error)
                self._counters["timed_out"] += 1

    def take_events(self) -> StepEvents | None:
        """Events that wait for no step (cancellations, deadlines); None if there are none."""
        self._expire()
        if not self._ended:
            return None
        ended, self._ended = self._ended, []
        return StepEvents.ends([request_id for request_id, _ in ended], [error for _, error in ended])

    @property
    def has_work(self) -> bool:
        """Whether requests live, steps are in flight or events wait."""
        return bool(self._requests or self._in_flight or self._ended)

    # ---- plan a step

    def schedule(self) -> StepPlan | None:
        """The next step, or None if nothing can run now. While requests live and nothing is in flight, something
        always can."""
        self._expire()
        if self._computed:
            self._publish_prompts()
        if not self._requests:
            return None
        if self._preemption is not None and self.queue:
            for slot in self._preemption.victims(self):
                self._displace(slot)
        budget = self._step_tokens() if self.policy.plans_steps else self.facts.chunk_tokens
        plan = PlanBuilder(self._step, budget, self.facts.num_groups)
        self._plan_decodes(plan)
        self._chunks.plan(plan)
        self._admissions.plan(plan)
        if plan.empty:
            return None
        built = plan.build()
        slots, seq_lens = built.slots, built.seq_lens
        self.table.last_step[slots] = self._step
        if np.count_nonzero(built.samples) < len(slots):
            slots, seq_lens = slots[built.samples], seq_lens[built.samples]
        tokens = built.num_tokens if self.policy.plans_steps else 0
        epochs = self.table.epoch[slots]
        released = self.table.num_released
        self._in_flight.append(Flight(self._step, slots, seq_lens, epochs, released, built.num_decodes, tokens))
        self._step += 1
        return built

    def _step_tokens(self) -> int:
        """What the policy gives this step; decodes run even if they are more."""
        table = self.table
        decodes = np.count_nonzero((table.state == DECODE) & (table.seq_len + 1 < table.max_len))
        return self.policy.step_tokens(
            StepLoad(int(decodes), len(self.queue), self.facts.chunk_tokens, self._last_tokens, self._last_step_s)
        )

    def _plan_decodes(self, plan: PlanBuilder) -> None:
        table = self.table
        if table.num_running == len(self._chunks):
            return
        # A row whose last allowed token is already under way has nothing more to do. The rest fit the budget: a
        # request is admitted with what is left after one token for everybody that runs.
        lens = table.seq_len + 1
        ready = table.state == DECODE
        ready &= lens < table.max_len
        slots = ready.nonzero()[0].astype(np.int32)
        if not len(slots):
            return
        lens = lens[slots]
        if not self.memory.fits(slots, lens):
            short = self.memory.shortage(slots, lens)
            if int(short.sum()) > self.memory.available:
                slots = self._relieve(slots)
                lens = table.seq_len[slots] + 1
                short = self.memory.shortage(slots, lens)
            plan.update(self.memory.extend(slots, short))
        table.seq_len[slots] = lens
        plan.decode(slots, lens)

    def _relieve(self, slots: Int32) -> Int32:
        """Pages do not suffice for every decode: preempt until they do, newest and least important first. Pages
        that only wait for a step in flight count; rows that need them sit this step out."""
        table, memory = self.table, self.memory
        victims = least_important(table).tolist()
        while True:
            short = memory.shortage(slots, table.seq_len[slots] + 1)
            available = memory.available
            if int(short.sum()) <= available + memory.pending_pages:
                break
            victim = victims.pop(0)
            self._preempt(victim)
            slots = slots[slots != victim]
        first = np.lexsort((table.order[slots], -table.priority[slots]))
        fits = np.cumsum(short[first]) <= available
        return np.sort(slots[first[fits | (short[first] == 0)]])

    def _preempt(self, slot: int) -> None:
        """Back to the queue with what is known; a token still under way is computed again."""
        request = self.table.requests[slot]
        assert request is not None
        request.tokens = self.table.known(slot)
        self._release(request, publish=True)
        request.preemptions += 1
        self._counters["preemptions"] += 1
        self._enqueue(request)

    def _displace(self, slot: int) -> None:
        """A running request gives way to a waiting one of higher priority."""
        request = self.table.requests[slot]
        assert request is not None
        request.displaced += 1
        self._counters["displaced"] += 1
        self._preempt(slot)

    # ---- take a step's results

    def complete(self, result: StepResult) -> StepEvents:
        """What the oldest step in flight gave. Steps complete in the order they were planned. Entries are in the
        order of the result's rows; requests that ended without a step since the last call follow."""
        flight = self._in_flight.popleft() if self._in_flight else None
        if (
            flight is None
            or flight.step != result.step
            or (result.slots is not flight.slots and not np.array_equal(flight.slots, result.slots))
        ):
            raise EngineError(f"step {result.step} is complete, step {flight.step if flight else None} was expected")
        if result.tokens.shape[1:] != (1,):
            raise EngineError(f"tokens have shape {result.tokens.shape}; one token a row is supported")
        self._passed = result.step
        self._last_tokens, self._last_step_s = flight.num_tokens, result.device_time_s
        self._counters["steps"] += 1
        self.memory.fence_passed(result.step)
        self.table.fence_passed(result.step)
        events = self._take_tokens(flight, result)
        ended = self.take_events()
        return events.followed_by(ended) if ended else events

    def _take_tokens(self, flight: Flight, result: StepResult) -> StepEvents:
        taken = take_tokens(self.table, flight, result, self._row_numbers)
        events, failed = taken.events, taken.failed
        self._counters["generated_tokens"] += len(events) - taken.num_failed
        if len(self.shares) > 1:
            self.shares.charge_outputs(self.table.tenant[taken.slots])
        if len(flight.slots) > flight.num_decodes:
            self._end_prompts(flight, taken)
        if np.count_nonzero(events.finish):
            for i in np.flatnonzero(events.finish).tolist():
                request = self.table.requests[taken.slots[i]]
                assert request is not None
                if failed[i]:
                    events.errors[i] = NOT_FINITE
                del self._requests[request.id]
                self._release(request, publish=not failed[i])
                self.shares.ended(request.tenant)
                self._counters["finished"] += 1
        return events

    def _end_prompts(self, flight: Flight, taken: TakenTokens) -> None:
        """Rows behind the decodes have computed the last of their prompts."""
        events = taken.events
        for i, row in enumerate(events.rows.tolist()):
            if row < flight.num_decodes:
                continue
            slot, known = int(flight.slots[row]), int(taken.total[i])
            request = self.table.requests[slot]
            assert request is not None
            if known == request.num_prompt + 1:
                events.first[i] = request.cached_tokens
            if known == self.table.prefill_len[slot] + 1 and not events.finish[i]:
                self._computed.append(request)

    def _publish_prompts(self) -> None:
        """Offer the prefix cache the prompts that are complete: before anything is planned, not before their first
        tokens are told."""
        computed, self._computed = self._computed, []
        for request in computed:
            if request.lease is not None:  # else it has ended, and was published then
                self.memory.publish(request.lease, self.table.verified(request.slot))
                self.sharing.ended(request)

    def _release(self, request: Request, publish: bool) -> None:
        """The one place where a request leaves its slot, lease and all."""
        slot, lease = request.slot, request.lease
        assert lease is not None
        fence = int(self.table.last_step[slot])
        if publish:
            self.memory.release(lease, self.table.verified(slot), fence)
        else:
            lease.release(fence)
        request.lease = None
        self.sharing.ended(request)
        self._chunks.drop(slot)
        self.table.release(slot, self._passed)

    # ---- the rest

    def flush_cache(self) -> None:
        """Forget cached prefixes. Raises EngineError while requests run."""
        self.memory.reset_cache()

    def stats(self) -> dict[str, float]:
        """Metric name -> number. Counters grow from start; pages are of one cache group. O(waiting)."""
        self._publish_prompts()
        memory = self.memory.stats()
        now = self._clock()
        values: dict[str, float] = {
            "running": self.table.num_running,
            "waiting": len(self.queue),
            "longest_wait_s": max((now - r.arrival_s for r in self.queue), default=0.0),
            "pages_total": memory.total,
            "pages_free": memory.free,
            "pages_leased": memory.leased,
            "pages_cached": memory.cached,
            "pages_evictable": memory.evictable,
            "pages_transfer": memory.transfer,
            "pages_quarantined": memory.quarantined,
            "prefill_slots": int(np.count_nonzero(self.table.state == PREFILL)),
            "policy_failed": float(bool(self.policy.failure)),
        }
        return values | {f"{name}_total": number for name, number in self._counters.items()}
