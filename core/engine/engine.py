"""The loop: receive → admit → schedule → launch → complete → send → settle. One code path with and without overlap.

The engine knows neither processes nor sockets: `submit` and `cancel` put work in, `step` returns messages. The
same object runs in a child process, on a thread, and under the offline `LLM`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.engine.constraints import Constraints, Endings
from core.engine.grammars import GrammarPool
from core.engine.listeners import EngineListeners
from core.engine.messages import AddRequest, ErrorInfo, Hello, StepOutputs
from core.engine.outputs import OutputBuilder, abort_outputs, error_outputs
from core.engine.protocols import ExecutorLike, RanksLike, SchedulerLike, StepEventsLike, StepHandle
from core.engine.wire_errors import describe
from core.interfaces.errors import EngineDead, EngineError
from core.interfaces.step import StepPlan, StepResult, TokenMasks
from core.metrics.step_record import StepLog, StepRecord

MAX_FAILING_STEPS = 3
GAUGES_INTERVAL_S = 0.05  # counting requests and pages takes longer than the rest of a record


class EngineFailed(EngineError):
    """Steps fail again and again, or the scheduler's state can no longer be trusted: the engine gives up."""


class StepFailed(EngineError):
    """An executor's word that a whole step went wrong."""


@dataclass(slots=True)
class _InFlight:
    """A launched step. ids [N] int64: request of each row of the plan."""

    plan: StepPlan
    handle: StepHandle
    ids: npt.NDArray[np.int64]
    schedule_s: float


@dataclass(slots=True)
class _Complete:
    """A step whose tokens are taken, not counted yet. complete_s: what taking them cost. step_s: as in StepRecord."""

    flight: _InFlight
    result: StepResult
    events: StepEventsLike
    complete_s: float
    step_s: float
    failed: bool


@dataclass(slots=True)
class _FailedLaunch:
    """Handle of a step that could not even be launched; it fails in its turn, after the steps before it."""

    error: Exception

    def sample(self, masks: TokenMasks | None) -> None:
        return None

    def wait(self) -> StepResult:
        raise self.error


class Engine:
    """One engine. Not thread-safe: everything is called from one thread.

    to_request: makes the scheduler's request of an AddRequest; may raise RequestError.
    overlap: plan and launch step n+1 before waiting for step n.
    max_slots: size of the scheduler's request table.
    listeners: hooks about requests and steps; None where nobody listens.
    grammars: compiles what texts must fit; None where there is no grammar backend.
    ranks: the other ranks; None where this one runs the model alone.

    paused: while True nothing is launched. Steps in flight complete, requests are taken into the queue and can be
    cancelled; those that run keep what they hold.
    """

    def __init__(
        self,
        scheduler: SchedulerLike,
        executor: ExecutorLike,
        hello: Hello,
        to_request: Callable[[AddRequest], Any],
        *,
        max_slots: int,
        overlap: bool = False,
        log_interval_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        logger: logging.Logger | None = None,
        listeners: EngineListeners | None = None,
        grammars: GrammarPool | None = None,
        ranks: RanksLike | None = None,
    ) -> None:
        self.hello = hello
        self.paused = False
        self._scheduler = scheduler
        self._executor = executor
        self._to_request = to_request
        self._depth = 1 if overlap else 0
        self._listeners = listeners
        self._clock = clock
        self._logger = logger or logging.getLogger("core.engine")
        self._log = StepLog(log_interval_s, clock())
        self._inbox: deque[AddRequest | int] = deque()
        self._in_flight: deque[_InFlight] = deque()
        self._complete_steps: list[_Complete] = []
        self._slot_ids = np.full(max_slots, -1, np.int64)
        self._arrival_s: dict[int, float] = {}
        self._outputs = OutputBuilder()
        self._constraints = Constraints(grammars, max_slots, hello.vocab_size)
        self._ranks = ranks
        self._live: set[int] = set()
        self._failing_steps = 0
        self._last_end_s: float | None = None
        self._last_totals = (0, 0)
        self._gauges_s = -1.0

    # Work in

    def submit(self, request: AddRequest) -> None:
        """Take a request; it is admitted or refused in the next `step`. Never raises for a bad request."""
        self._inbox.append(request)

    def cancel(self, request_id: int) -> None:
        """End a request with finish reason "abort"; unknown ids are ignored."""
        self._inbox.append(request_id)

    def flush_cache(self) -> None:
        """Forget cached prefixes. Raises EngineError while requests run or wait."""
        if self.has_work:
            raise EngineError("the prefix cache cannot be flushed while requests run", hint="try again when idle")
        self._scheduler.flush_cache()

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._inbox or self._in_flight or self._constraints.num_waiting or self._scheduler.has_work)

    @property
    def busy(self) -> bool:
        """Whether a step is in flight."""
        return bool(self._in_flight)

    def rest(self, timeout_s: float) -> None:
        """If nothing is left to do but to wait for grammars: sleep until one is there, or for `timeout_s`."""
        if self._constraints.num_waiting and not (self._inbox or self._in_flight or self._scheduler.has_work):
            self._constraints.wait(timeout_s)

    @property
    def executor(self) -> ExecutorLike:
        """What runs the steps, for measurements."""
        return self._executor

    @property
    def steps(self) -> int:
        """Finished steps."""
        self.settle()
        return self._log.totals.steps

    def stats(self) -> dict[str, float]:
        """Metric values now."""
        self.settle()
        self._gauges(self._log.last, deltas=False)
        return self._log.values(self._clock()) | self._constraints.stats()

    def check(self) -> None:
        """Raises EngineFailed if a rank is gone, which steps in flight show by themselves."""
        if self._ranks is not None:
            try:
                self._ranks.check()
            except EngineDead as error:
                raise EngineFailed(error.message, hint=error.hint) from error

    def set_log_level(self, level: str) -> None:
        """Of other processes of this engine."""
        if self._ranks is not None:
            self._ranks.set_log_level(level)

    def tell_steps(self, *, at_once: bool = False) -> None:
        """Tell hooks of complete steps if it is time, or `at_once`; for callers that have no more work for now."""
        self.settle()
        if self._listeners is not None:
            self._listeners.tell_steps(self._clock(), at_once=at_once)

    def tell_stopping(self, reason: str, *, failed: bool) -> None:
        """Tell hooks that this engine ends, once."""
        try:
            self.settle()
        except Exception:  # what is wrong with this engine is told in any case
            self._logger.warning("the last steps could not be counted", exc_info=True)
        if self._listeners is not None:
            waiting = [item for item in self._inbox if isinstance(item, AddRequest)] + self._constraints.waiting
            self._listeners.stopping(reason, waiting, self._clock(), failed=failed)

    def close(self) -> None:
        """Tell hooks, wait for steps in flight, then give back what the executor holds."""
        self.tell_stopping("shutdown", failed=False)
        while self._in_flight:
            flight = self._in_flight.popleft()
            try:
                flight.handle.wait()
            except Exception:
                self._logger.warning("a step failed while the engine was closing", exc_info=True)
        self._constraints.close()
        self._executor.close()

    # The loop

    def step(self) -> list[StepOutputs] | None:
        """One turn of the loop. Returns what to send, or None. Raises EngineFailed when steps keep failing; a bad
        request or a failing step is an entry of the outputs, never an exception."""
        try:
            return self._turn()
        except Exception as error:
            self.tell_stopping(describe(error)[0], failed=True)
            raise

    def settle(self) -> None:
        """Count the steps that are complete, write the log line, tell hooks. For callers that have sent what `step`
        gave, so that nobody's tokens wait for it; else the next `step` does it."""
        if not self._complete_steps:
            return
        complete, self._complete_steps = self._complete_steps, []
        for step in complete:
            self._record(step)
        now_s = self._clock()
        if (line := self._log.line(now_s)) is not None:
            self._logger.info(line)
        if self._listeners is not None:
            self._listeners.tell_steps(now_s)

    def _turn(self) -> list[StepOutputs] | None:
        self.settle()
        outputs = self._admit()
        launched = not self.paused and self._launch()
        if launched and self._in_flight[-1].plan.masked:
            outputs += self._sample()
        if self._in_flight and (len(self._in_flight) > self._depth or not launched):
            outputs += self._complete(self._in_flight.popleft())
        events = self._scheduler.take_events()
        if events is not None and len(events.ids):
            outputs.append(self._to_outputs(events, None))
        if not self.has_work:
            self._last_end_s = None
        return outputs or None

    def _admit(self) -> list[StepOutputs]:
        outputs: list[StepOutputs] = []
        failures: list[tuple[int, str, ErrorInfo]] = []
        for waited, problem in self._constraints.ready():
            self._add(waited, problem, failures)
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, int):
                if (request := self._constraints.drop(item)) is None:
                    self._scheduler.cancel(item)
                    continue
                outputs.append(abort_outputs([item]))
                if self._listeners is not None:
                    self._listeners.refused(request, "abort", None)
                continue
            try:
                if self._constraints.admits(item):
                    self._add(item, None, failures)
            except Exception as error:
                self._add(item, error, failures)
        return [*outputs, error_outputs(failures)] if failures else outputs

    def _add(self, item: AddRequest, problem: Exception | None, failures: list[tuple[int, str, ErrorInfo]]) -> None:
        """Hand a request to the scheduler; if that cannot be, or there is a `problem` already, add to `failures`."""
        try:
            if problem is not None:
                raise problem
            self._scheduler.add(self._to_request(item))
        except Exception as error:  # whatever a request brings must not stop the others
            if item.id not in self._live:
                self._constraints.drop(item.id)
            failures.append((item.id, *describe(error)))
            if self._listeners is not None:
                self._listeners.refused(item, "error", failures[-1][1])
            return
        self._live.add(item.id)
        self._arrival_s[item.id] = item.arrival_s or self._clock()
        self._outputs.opened(item)
        if self._listeners is not None:
            self._listeners.taken(item)

    def _launch(self) -> bool:
        start_s = self._clock()
        if self._last_end_s is None:
            self._last_end_s = start_s
        try:
            plan = self._scheduler.schedule()
        except Exception as error:  # its tables may be half updated: nothing more can be trusted
            raise EngineFailed(f"scheduling failed: {describe(error)[0]}") from error
        if plan is None:
            return False
        for admission in plan.admissions:
            self._slot_ids[admission.slot] = admission.request_id
            if (arrival_s := self._arrival_s.pop(admission.request_id, None)) is not None:
                self._outputs.queue_s[admission.request_id] = max(0.0, start_s - arrival_s)
        self._constraints.plan(plan)
        schedule_s = self._clock() - start_s
        handle: StepHandle
        try:
            handle = self._executor.launch(plan)
        except Exception as error:
            handle = _FailedLaunch(error)
        self._in_flight.append(_InFlight(plan, handle, self._slot_ids[plan.slots], schedule_s))
        if self._listeners is not None and plan.admissions:
            self._listeners.launched(plan, self._outputs.queue_s)
        return True

    def _sample(self) -> list[StepOutputs]:
        """Go on with the masked step that was just launched: it needs the tokens of the steps before it."""
        outputs: list[StepOutputs] = []
        flight = self._in_flight[-1]
        while self._in_flight[0] is not flight:
            outputs += self._complete(self._in_flight.popleft())
        masks, endings = self._constraints.masks(flight.plan, flight.ids)
        self._end(endings)
        try:
            flight.handle.sample(masks)
        except Exception as error:
            flight.handle = _FailedLaunch(error)
        return outputs

    def _end(self, endings: Endings) -> None:
        """End requests because of their grammars: with an error, or with "stop" where the text is complete."""
        for request_id, error in endings:
            if error is None:
                self._outputs.stopped.add(request_id)
            else:
                self._outputs.failed[request_id] = describe(error)
                self._logger.error("request %d ends: %s", request_id, error.message)
            self._constraints.drop(request_id)
            self._scheduler.cancel(request_id)

    def _complete(self, flight: _InFlight) -> list[StepOutputs]:
        failed = False
        try:
            result = flight.handle.wait()
            if result.error is not None:
                raise StepFailed(result.error)
        except Exception as error:
            result, failed = self._take_down(flight, error), True
        start_s = self._clock()
        if result.errors:
            self._blame(flight, result)
        try:
            events = self._scheduler.complete(result)
        except Exception as error:
            raise EngineFailed(f"completing step {flight.plan.step} failed: {describe(error)[0]}") from error
        if not failed:
            self._failing_steps = 0
        if result.extras:
            self._outputs.took(result, dict(zip(flight.plan.slots.tolist(), flight.ids.tolist(), strict=True)))
        outputs = [self._to_outputs(events, result)] if len(events.ids) else []
        self._end(self._constraints.accept(events))
        now_s = self._clock()
        step_s = now_s - (now_s if self._last_end_s is None else self._last_end_s)
        self._last_end_s = now_s
        self._complete_steps.append(_Complete(flight, result, events, now_s - start_s, step_s, failed))
        return outputs

    def _blame(self, flight: _InFlight, result: StepResult) -> None:
        """Note why rows failed; those of requests that are over say nothing."""
        ids = dict(zip(flight.plan.slots.tolist(), flight.ids.tolist(), strict=True))
        for slot, why in result.errors.items():
            if (request_id := ids[slot]) in self._live and request_id not in self._outputs.stopped:
                self._outputs.failed[request_id] = (why, ErrorInfo())
                self._logger.error("request %d ends: %s", request_id, why)

    def _take_down(self, flight: _InFlight, error: Exception) -> StepResult:
        """A step raised: end its requests with the error, and make the result that frees what they hold. EngineDead,
        the executor's word that no later step can succeed, ends the engine."""
        if isinstance(error, EngineDead):
            raise EngineFailed(error.message, hint=error.hint) from error
        self._failing_steps += 1
        self._logger.error("step %d failed (%d in a row)", flight.plan.step, self._failing_steps, exc_info=error)
        if self._failing_steps >= MAX_FAILING_STEPS:
            raise EngineFailed(
                f"{self._failing_steps} steps in a row failed; the last: {describe(error)[0]}"
            ) from error
        message, info = describe(error)
        for request_id in self._live.intersection(flight.ids.tolist()):
            self._outputs.failed[request_id] = (f"the step of this request failed: {message}", info)
            self._scheduler.cancel(request_id)
        slots = flight.plan.slots[flight.plan.samples]
        count = len(slots)
        return StepResult(
            step=flight.plan.step,
            slots=slots,
            tokens=np.zeros((count, 1), np.int32),
            counts=np.zeros(count, np.int32),
            failed=np.ones(count, np.bool_),
        )

    def _to_outputs(self, events: StepEventsLike, result: StepResult | None) -> StepOutputs:
        outputs = self._outputs.build(events, result)
        if self._listeners is not None:
            self._listeners.completed(events, outputs, result)
        ended = events.ids[np.flatnonzero(events.finish)].tolist() if np.count_nonzero(events.finish) else []
        self._outputs.told(events, ended)
        for request_id in ended:
            self._live.discard(request_id)
            self._constraints.drop(request_id)
            self._arrival_s.pop(request_id, None)
        return outputs

    def _record(self, step: _Complete) -> None:
        flight, result, events, plan = step.flight, step.result, step.events, step.flight.plan
        prefill_tokens = int(plan.q_lens[plan.num_decodes :].sum()) if len(plan.slots) > plan.num_decodes else 0
        record = StepRecord(
            prefill_tokens=prefill_tokens,
            decode_tokens=plan.num_tokens - prefill_tokens,
            sampled_tokens=int(np.count_nonzero(events.tokens >= 0)),
            finished=int(np.count_nonzero(events.finish)),
            failed=step.failed,
            schedule_s=flight.schedule_s + step.complete_s,
            build_s=result.times.build_s,
            launch_s=result.times.launch_s,
            wait_s=result.times.wait_s,
            output_s=result.times.output_s,
            device_s=result.device_time_s,
            step_s=step.step_s,
        )
        if self._clock() - self._gauges_s >= GAUGES_INTERVAL_S or not self._scheduler.has_work:
            self._gauges(record)
        else:
            record.keep_gauges(self._log.last)
        self._log.add(record)
        if self._listeners is not None:
            self._listeners.step(plan, record)

    def _gauges(self, record: StepRecord, deltas: bool = True) -> None:
        """Fill in what only the scheduler can count; `deltas`: also what grew since the last time."""
        stats = self._scheduler.stats()
        record.running, record.waiting = int(stats["running"]), int(stats["waiting"])
        record.total_pages, record.free_pages = int(stats["pages_total"]), int(stats["pages_free"])
        record.cached_pages = int(stats["pages_evictable"])
        if not deltas:
            return
        self._gauges_s = self._clock()
        totals = int(stats["preemptions_total"]), int(stats["hit_tokens_total"])
        record.preemptions = totals[0] - self._last_totals[0]
        record.cached_tokens = totals[1] - self._last_totals[1]
        self._last_totals = totals
