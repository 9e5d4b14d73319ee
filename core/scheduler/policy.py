"""AdmissionOrder: the fairness around a schedule policy, and what happens if the policy breaks its contract.

A policy orders within one priority, after requests that were preempted. One that reorders lets later requests pass;
a request that has been passed `max_bypasses` times goes first and nobody passes it again, so waiting is bounded by
arrivals of higher priority alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.interfaces.errors import PluginError
from core.interfaces.schedule import Match, SchedulePolicy, StepLoad
from core.scheduler.queue import WaitingQueue
from core.scheduler.request import Request

MAX_BYPASSES = 64


class AdmissionOrder:
    """The next one to be admitted, and the budget of the next step, by `policy` within core's rules.

    A policy decides about speed, never about what a request gets. So one that raises, loses a request or invents one
    is no reason to drop anybody's answer: it is reported once, by name, and from then on requests are admitted first
    come, first served. `failure`: what it did, or "".
    """

    def __init__(self, policy: SchedulePolicy, chunk_tokens: int, max_bypasses: int = MAX_BYPASSES) -> None:
        self.policy = policy
        self.max_bypasses = max_bypasses
        self.failure = ""
        self.reorders = policy.reorders
        self.plans_steps = policy.plans_steps
        self._chunk_tokens = chunk_tokens

    def order(self, queue: WaitingQueue, match: Match) -> list[Request]:
        """Everybody in `queue`, next one first."""
        waiting = list(queue)
        if not self.reorders or len(waiting) < 2:
            return waiting
        first = {id(r) for r in waiting if r.preemptions or r.bypasses >= self.max_bypasses}
        rest = [r for r in waiting if id(r) not in first]
        try:
            ranked = self.policy.rank(tuple(rest), match)
            self._check(rest, ranked)
        except Exception as error:
            self._give_up(error)
            return waiting
        ordered = [r for r in waiting if id(r) in first]
        ordered += ranked
        ordered.sort(key=lambda r: -r.priority)
        return ordered

    def step_tokens(self, load: StepLoad) -> int:
        """Token budget of the next step, 1 .. chunk_tokens. Only to be asked if `plans_steps`."""
        try:
            wanted = int(self.policy.step_tokens(load))
        except Exception as error:
            self._give_up(error)
            return self._chunk_tokens
        return min(max(wanted, 1), self._chunk_tokens)

    def admitted(self, queue: WaitingQueue, request: Request) -> None:
        """`request`, still in `queue`, is admitted: those ahead of it have been passed."""
        if self.reorders:
            for other in queue:
                if other is request:
                    break
                other.bypasses += 1

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
