"""AdmissionOrder: the fairness around a schedule policy, and what happens if the policy breaks its contract.

Three rules, one inside the other:

1. Higher priority first, and yet nobody starves: a priority that has been passed by `low_priority_share` admissions of
   higher ones is next, once (a guaranteed share of one in `low_priority_share` + 1 with two priorities).
2. Within a priority, who was preempted; then the tenant that has been served least for its weight (`fairness`).
3. Within a tenant, the policy. One that reorders lets later requests pass; a request that has been passed
   `max_bypasses` times goes first and nobody passes it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush

from core.interfaces.errors import PluginError
from core.interfaces.schedule import Match, SchedulePolicy, StepLoad
from core.scheduler.fairness import TenantShares
from core.scheduler.queue import WaitingQueue
from core.scheduler.request import Request

MAX_BYPASSES = 64
LOW_PRIORITY_SHARE = 32


class AdmissionOrder:
    """The next one to be admitted, and the budget of the next step, by `policy` within core's rules.

    A policy decides about speed, never about what a request gets. So one that raises, loses a request or invents one
    is no reason to drop anybody's answer: it is reported once, by name, and from then on requests are admitted first
    come, first served. `failure`: what it did, or "".
    """

    def __init__(
        self,
        policy: SchedulePolicy,
        chunk_tokens: int,
        max_bypasses: int = MAX_BYPASSES,
        *,
        low_priority_share: int = LOW_PRIORITY_SHARE,
        shares: TenantShares | None = None,
    ) -> None:
        """low_priority_share: see above; 0: lower priorities wait as long as higher ones come."""
        self.policy = policy
        self.max_bypasses = max_bypasses
        self.low_priority_share = low_priority_share
        self.shares = TenantShares() if shares is None else shares
        self.failure = ""
        self.reorders = policy.reorders
        self.plans_steps = policy.plans_steps
        self._chunk_tokens = chunk_tokens
        self._passed: dict[int, int] = {}  # priority that waits -> admissions of higher ones since its last

    def order(self, queue: WaitingQueue, match: Match) -> Iterable[Request]:
        """Everybody in `queue`, next one first. A request that is taken out and reported by `admitted` meanwhile
        counts for who comes next."""
        lane = queue.single
        return self._rank(lane, match) if lane is not None else self._several(queue, match)

    def priority_order(self, queue: WaitingQueue, match: Match, at_least: int) -> Iterator[Request]:
        """Those of priority `at_least` and more, as rules 2 and 3 say, without rule 1."""
        for priority in queue.priorities():
            if priority < at_least:
                return
            yield from self._tenants(queue, priority, match)

    def _several(self, queue: WaitingQueue, match: Match) -> Iterator[Request]:
        """Lanes by priority and tenant, each ranked when its turn comes."""
        classes = {priority: self._tenants(queue, priority, match) for priority in queue.priorities()}
        while classes:
            priority = self._due(classes)
            request = next(classes[priority], None)
            if request is None:
                del classes[priority]
            else:
                yield request

    def _due(self, classes: Iterable[int]) -> int:
        """The priority whose turn it is."""
        if self.low_priority_share and self._passed:
            starved = [p for p in classes if self._passed.get(p, 0) >= self.low_priority_share]
            if starved:
                return max(starved, key=lambda p: (self._passed[p], p))
        return max(classes)

    def _tenants(self, queue: WaitingQueue, priority: int, match: Match) -> Iterator[Request]:
        lanes = queue.lanes(priority)
        if len(lanes) == 1:
            (lane,) = lanes.values()
            yield from self._rank(list(lane), match)
            return
        # Who was preempted has been chosen before: no tenant's turn again.
        yield from [r for r in queue.line(priority) if r.preemptions]
        new = {tenant: [r for r in lane if not r.preemptions] for tenant, lane in lanes.items()}
        counter = self.shares.counter
        heads = [(counter(tenant), lane[0].order, tenant) for tenant, lane in new.items() if lane]
        heapify(heads)
        ranked: dict[str, Iterator[Request]] = {}
        while heads:
            _, order, tenant = heappop(heads)
            if tenant not in ranked:
                ranked[tenant] = iter(self._rank(new[tenant], match))
            request = next(ranked[tenant], None)
            if request is not None:
                yield request
                heappush(heads, (counter(tenant), order, tenant))

    def _rank(self, waiting: list[Request], match: Match) -> list[Request]:
        """One lane, by the policy."""
        if not self.reorders or len(waiting) < 2:
            return waiting
        first = [r for r in waiting if r.preemptions or r.bypasses >= self.max_bypasses]
        rest = [r for r in waiting if not (r.preemptions or r.bypasses >= self.max_bypasses)]
        try:
            ranked = self.policy.rank(tuple(rest), match)
            self._check(rest, ranked)
        except Exception as error:
            self._give_up(error)
            return waiting
        return [*first, *ranked]

    def step_tokens(self, load: StepLoad) -> int:
        """Token budget of the next step, 1 .. chunk_tokens. Only to be asked if `plans_steps`."""
        try:
            wanted = int(self.policy.step_tokens(load))
        except Exception as error:
            self._give_up(error)
            return self._chunk_tokens
        return min(max(wanted, 1), self._chunk_tokens)

    def admitted(self, queue: WaitingQueue, request: Request) -> bool:
        """`request`, still in `queue`, is admitted: those ahead of it have been passed. Returns whether it owes that
        to its priority's guaranteed share."""
        if self.reorders:
            for other in queue.ahead(request):
                other.bypasses += 1
        by_share = self._passed.get(request.priority, 0) >= self.low_priority_share > 0
        # Priorities of which nobody waits any more are forgotten.
        self._passed = {
            priority: self._passed.get(priority, 0) + (priority < request.priority)
            for priority in queue.priorities()
            if priority != request.priority
        }
        return by_share

    def _check(self, given: Sequence[Request], ranked: Sequence[Request]) -> None:
        if len(ranked) == len(given) and {id(r) for r in ranked} == {id(r) for r in given}:
            return
        lost = {r.id for r in given} - {r.id for r in ranked}
        raise PluginError(
            f"rank() got {len(given)} requests and returned {len(ranked)}"
            + (f", without request {min(lost)}" if lost else ", some of them twice or not of these")
        )

    def _give_up(self, error: Exception) -> None:
        kind = type(self.policy)
        what = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        self.failure = f"schedule policy {kind.__module__}.{kind.__qualname__} failed: {what}"
        self.reorders = self.plans_steps = False
        self.policy.ctx.logger.error(
            "%s; until a restart, requests are admitted first come, first served", self.failure, exc_info=error
        )
