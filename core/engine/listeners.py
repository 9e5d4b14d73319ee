"""What the engine tells hooks about requests and steps. There is no such object where nobody listens.

Each request that reached the engine finishes once here, whatever its way out. Steps are told in batches. Per decode
step this costs one row of numbers and one addition over the batch; objects are made per request and per step only, and
only for the hooks that somebody implements.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from core.engine.messages import FINISH_REASONS, AddRequest, StepOutputs
from core.engine.outputs import NO_TOKEN
from core.engine.protocols import StepEventsLike
from core.hooks import HookManager
from core.interfaces.hooks import RequestAdmitted, RequestFinished, StepDone
from core.interfaces.step import StepPlan, StepResult
from core.metrics.step_record import StepRecord

BATCH_S = 1.0
_HOOKS = ("core_request_admitted", "core_request_finished", "core_steps_done", "core_engine_stopping")


@dataclass(slots=True)
class _Request:
    """slot: where it ran last, -1 before. num_output: tokens it had when it lost its slot."""

    num_prompt: int
    priority: int
    slot: int = -1
    num_output: int = 0
    admitted: bool = False


class EngineListeners:
    """The engine's side of the hooks. max_slots: size of the scheduler's request table."""

    def __init__(self, hooks: HookManager, max_slots: int) -> None:
        self._hooks = hooks
        self._requests: dict[int, _Request] = {}
        self._steps: list[StepDone] = []
        self._told_s = float("-inf")
        self._follows_requests = hooks.has("core_request_admitted") or hooks.has("core_request_finished")
        self._follows_steps = hooks.has("core_steps_done")
        self._owner = np.full(max_slots, -1, np.int64)
        self._num_output = np.zeros(max_slots, np.int32)
        self._stopped = False

    @classmethod
    def of(cls, hooks: HookManager | None, max_slots: int) -> EngineListeners | None:
        """None if nobody listens to what an engine does while it runs."""
        if hooks is None or not any(hooks.has(name) for name in _HOOKS):
            return None
        return cls(hooks, max_slots)

    # Requests

    def taken(self, request: AddRequest) -> None:
        """The scheduler has it."""
        if self._follows_requests:
            self._requests[request.id] = _Request(len(request.token_ids) // 4, request.priority)

    def refused(self, request: AddRequest, reason: str, error: str | None) -> None:
        """It never came to the scheduler. reason: "error" or "abort"."""
        if self._follows_requests:
            self._finish(request.id, _Request(len(request.token_ids) // 4, request.priority), reason, error)

    def launched(self, plan: StepPlan, queue_s: dict[int, float]) -> None:
        """A step with admissions is under way. queue_s: request id -> seconds it waited."""
        if not self._follows_requests:
            return
        for admission in plan.admissions:
            slot, request = admission.slot, self._requests.get(admission.request_id)
            former = self._requests.get(int(self._owner[slot]))
            if former is not None and former.slot == slot:  # preempted, and its place is taken
                former.num_output, former.slot = int(self._num_output[slot]), -1
            self._owner[slot] = admission.request_id
            self._num_output[slot] = len(admission.token_ids) - admission.num_prompt
            if request is None:
                continue
            first = not request.admitted
            request.slot, request.admitted = slot, True
            if first and self._hooks.has("core_request_admitted"):
                row = int(np.flatnonzero(plan.slots == slot)[0])
                told = RequestAdmitted(
                    id=admission.request_id,
                    num_prompt_tokens=admission.num_prompt,
                    cached_tokens=int(plan.seq_lens[row] - plan.q_lens[row]),
                    priority=request.priority,
                    queue_s=queue_s.get(admission.request_id, 0.0),
                )
                self._hooks.call("core_request_admitted", request=told)

    def completed(self, events: StepEventsLike, outputs: StepOutputs, result: StepResult | None) -> None:
        """Requests got tokens or ended. result: None where no step is behind it."""
        if not self._follows_requests:
            return
        if result is not None:
            rows = events.rows[(events.tokens != NO_TOKEN) & (events.rows >= 0)]
            self._num_output[result.slots[rows]] += 1
        if not events.finish.any():
            return
        finish = np.frombuffer(outputs.finish, np.uint8)
        for index in np.flatnonzero(finish).tolist():
            request_id = int(events.ids[index])
            request = self._requests.pop(request_id, None)
            if request is not None:
                self._finish(request_id, request, FINISH_REASONS[finish[index]], outputs.errors.get(index))

    def _finish(self, request_id: int, request: _Request, reason: str, error: str | None) -> None:
        if not self._hooks.has("core_request_finished"):
            return
        num_output = int(self._num_output[request.slot]) if request.slot >= 0 else request.num_output
        told = RequestFinished(request_id, reason, request.num_prompt, num_output, error)
        self._hooks.call("core_request_finished", request=told)

    # Steps

    def step(self, plan: StepPlan, record: StepRecord) -> None:
        """A step is complete."""
        if self._follows_steps:
            self._steps.append(
                StepDone(
                    plan.step,
                    len(plan.slots),
                    plan.num_decodes,
                    record.prefill_tokens + record.decode_tokens,
                    record.schedule_s,
                    record.device_s,
                    record.failed,
                )
            )

    def tell_steps(self, now_s: float, *, at_once: bool = False) -> None:
        """Tell of the steps since the last time, if that is about a second ago, or `at_once`."""
        if not self._steps or not (at_once or now_s - self._told_s >= BATCH_S):
            return
        steps, self._steps, self._told_s = self._steps, [], now_s
        self._hooks.call("core_steps_done", steps=tuple(steps))

    # The end

    def stopping(self, reason: str, waiting: Iterable[AddRequest], now_s: float, *, failed: bool) -> None:
        """The last word; further calls do nothing. waiting: requests that were not looked at yet."""
        if self._stopped:
            return
        self._stopped = True
        way_out, error = ("error", reason) if failed else ("abort", None)
        requests, self._requests = self._requests, {}
        for request_id, request in requests.items():
            self._finish(request_id, request, way_out, error)
        for message in waiting:
            self.refused(message, way_out, error)
        self.tell_steps(now_s, at_once=True)
        self._hooks.call("core_engine_stopping", reason=reason)
