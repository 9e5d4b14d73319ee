"""AdmissionPlanner: which waiting requests enter a slot with the next step."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.interfaces.step import Admission
from core.memory.manager import MemoryManager
from core.scheduler.chunks import PromptChunks
from core.scheduler.fairness import TenantShares
from core.scheduler.plan import PlanBuilder
from core.scheduler.policy import AdmissionOrder
from core.scheduler.queue import WaitingQueue
from core.scheduler.request import Request
from core.scheduler.sharing import MAX_HELD, PromptSharing
from core.scheduler.table import RequestTable


@dataclass(slots=True)
class AdmissionPlanner:
    """Works on the scheduler's parts. counters: of these "prompt_tokens" and "hit_tokens" grow here."""

    table: RequestTable
    queue: WaitingQueue
    memory: MemoryManager
    policy: AdmissionOrder
    sharing: PromptSharing
    shares: TenantShares
    chunks: PromptChunks
    counters: dict[str, int]
    _blocked: tuple[int, int, int, int] | None = field(init=False, default=None)

    def plan(self, plan: PlanBuilder) -> None:
        """Admit in the policy's order what slots, memory and the plan's budget have room for."""
        if plan.budget <= 0 or not self.queue or not self.table.num_free:
            return
        if self._still_blocked():
            return
        self._blocked = None
        held = 0
        for request in self.policy.order(self.queue, self.memory.match):
            if plan.budget <= 0 or not self.table.num_free or held == MAX_HELD:
                return
            if self._waits_for_leader(request):
                held += 1
                continue
            if not self._admit(plan, request):
                # Nobody overtakes: else a large request would wait for ever.
                self._blocked = self._circumstances()
                return

    def _waits_for_leader(self, request: Request) -> bool:
        """Whether half of what `request` has to compute, or more, is being computed for another right now."""
        leader = self.sharing.leader(request) if self.memory.keeps_prefixes and request.uses_cache else None
        if leader is None:
            return False
        gain = self.sharing.gain(request, leader)
        cached = self.memory.match(request.key).num_tokens
        if 2 * (gain - cached) < len(request.tokens) - cached:
            return False
        request.leader_id = leader.id
        return True

    def _circumstances(self) -> tuple[int, int, int, int]:
        return self.memory.available, self.table.num_running, self.queue.version, self.memory.version

    def _still_blocked(self) -> bool:
        """Whether nothing has changed for the better since a request did not fit."""
        if self._blocked is None:
            return False
        available, running, *versions = self._blocked
        now_available, now_running, *now_versions = self._circumstances()
        return now_available <= available and now_running >= running and now_versions == versions

    def _admit(self, plan: PlanBuilder, request: Request) -> bool:
        # A page of growth stays available for every running request, or it would be preempted at once.
        lease = self.memory.begin(
            request.key,
            self.table.next_slot(),
            priority=request.priority,
            reserve=self.table.num_running,
            reuse=request.uses_cache,
        )
        if lease is None:
            return False
        request.protected |= self.policy.admitted(self.queue, request)
        self.queue.remove(request)
        self.shares.leaves_queue(request.tenant)
        request.lease = lease
        if request.cached_tokens < 0:
            request.cached_tokens = lease.cached_tokens
            self.counters["prompt_tokens"] += request.num_prompt
            self.counters["hit_tokens"] += lease.cached_tokens
            self.shares.charge_prompt(request.tenant, request.num_prompt - lease.cached_tokens)
        slot = self.table.take(request, lease.cached_tokens, plan.step)
        self.table.tenant[slot] = self.shares.index(request.tenant)
        plan.admissions.append(
            Admission(
                slot,
                request.id,
                request.tokens,
                request.num_prompt,
                request.sampling,
                request.seed,
                request.eos_in_effect,
                request.pooling,
            )
        )
        plan.update(self.memory.row(slot))
        self.sharing.started(request)
        self.chunks.plan_one(plan, slot)
        return True
