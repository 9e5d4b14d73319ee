"""A scheduler and an executor small enough to check by eye; and engine factories for a real child process.

The token at index k of a text is `expected(prompt, seed)[k]`, whatever ran beside it. Some prompts misbehave.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field

import msgspec
import numpy as np

from core.engine.engine import Engine
from core.engine.messages import FINISH_REASONS, AddRequest, Hello
from core.interfaces.errors import CapacityError, EngineError, Overloaded, RequestError
from core.interfaces.params import SamplingParams
from core.interfaces.step import Admission, Logprobs, StepPlan, StepResult

EOS = 7
LAUNCH_RAISES, WAIT_RAISES, KILLS_PROCESS, NEVER_ENDS = 666, 667, 668, 669


def expected(prompt, seed: int, count: int) -> list[int]:
    """The text of a request, cut at `count` tokens or after the first EOS."""
    out = []
    for k in range(count):
        out.append(int((seed * 31 + int(np.sum(prompt)) * 7 + k * 13) % 97))
        if out[-1] == EOS:
            break
    return out


def finish_of(tokens: list[int]) -> str:
    return "stop" if tokens[-1] == EOS else "length"


@dataclass
class FakeEvents:
    ids: np.ndarray
    tokens: np.ndarray
    finish: np.ndarray
    rows: np.ndarray
    first: dict[int, int] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


@dataclass
class Row:
    message: AddRequest
    prompt: np.ndarray
    slot: int = -1
    computed: int = 0
    planned: int = 0
    given: int = 0
    in_flight: int = 0
    ended: bool = False
    cancelled: bool = False


class FakeScheduler:
    def __init__(self, max_running: int = 8, max_queued: int = 64, chunk: int = 16, context: int = 10_000) -> None:
        self.max_queued, self.chunk, self.context = max_queued, chunk, context
        self.waiting: deque[Row] = deque()
        self.rows: dict[int, Row] = {}
        self.free = list(range(max_running))
        self.cancelled_waiting: list[int] = []
        self.plans: dict[int, list[Row]] = {}
        self.step = 0
        self.flushed = 0
        self.cached_total = 0

    def add(self, request: AddRequest) -> None:
        prompt = np.frombuffer(request.token_ids, np.int32)
        if not len(prompt):
            raise RequestError("prompt is empty", param="prompt", code="empty_prompt")
        if len(prompt) >= self.context:
            raise RequestError(f"prompt has {len(prompt)} tokens", param="prompt", status=413)
        if len(self.waiting) >= self.max_queued:
            raise Overloaded("the queue is full", retry_after_s=2)
        self.waiting.append(Row(request, prompt))

    def cancel(self, request_id: int) -> None:
        for row in self.waiting:
            if row.message.id == request_id:
                self.waiting.remove(row)
                self.cancelled_waiting.append(request_id)
                return
        for row in list(self.rows.values()):
            if row.message.id == request_id and not row.ended:
                row.cancelled = True
                if not row.in_flight:
                    self._end(row)
                    self.cancelled_waiting.append(request_id)

    def _end(self, row: Row) -> None:
        row.ended = True
        if not row.in_flight and row.slot >= 0:
            del self.rows[row.slot]
            self.free.append(row.slot)
            row.slot = -1

    def schedule(self) -> StepPlan | None:
        admissions = []
        while self.waiting and self.free:
            row = self.waiting.popleft()
            row.slot = self.free.pop()
            self.rows[row.slot] = row
            admissions.append(
                Admission(row.slot, row.message.id, row.prompt, len(row.prompt), row.message.sampling, row.message.seed)
            )
        decodes, prefills = [], []
        for row in self.rows.values():
            if row.ended or row.cancelled or row.planned >= (row.message.sampling.max_tokens or 10**9):
                continue
            (decodes if row.planned else prefills).append(row)
        if not decodes and not prefills:
            return None
        slots, q_lens, seq_lens, samples = [], [], [], []
        for row in decodes + prefills:
            new = 1 if row.planned else min(self.chunk, len(row.prompt) - row.computed)
            row.computed += new
            row.in_flight += 1
            sampled = row.computed >= len(row.prompt)
            row.planned += sampled
            slots.append(row.slot), q_lens.append(new), seq_lens.append(row.computed), samples.append(sampled)
        self.step += 1
        self.plans[self.step] = decodes + prefills
        return StepPlan(
            self.step, np.array(slots, np.int32), len(decodes), np.array(q_lens, np.int32),
            np.array(seq_lens, np.int32), np.array(samples, np.bool_), admissions,
        )  # fmt: skip

    def complete(self, result: StepResult) -> FakeEvents:
        rows = self.plans.pop(result.step)
        sampled = dict(zip(result.slots.tolist(), range(len(result.slots)), strict=True))
        ids, tokens, finish, at, first, errors = [], [], [], [], {}, {}
        for row in rows:
            row.in_flight -= 1
            slot = row.slot
            if row.ended:
                self._end(row)
                continue
            index = sampled.get(slot)
            token, reason = -1, ""
            if row.cancelled:
                reason = "abort"
            elif index is None:
                continue
            elif result.failed[index]:
                reason = "error"
                errors[len(ids)] = "logits are not finite"
            else:
                token = int(result.tokens[index, 0])
                if row.given == 0:
                    first[len(ids)] = 3
                    self.cached_total += 3
                row.given += 1
                if token == EOS:
                    reason = "stop"
                elif row.given == row.message.sampling.max_tokens:
                    reason = "length"
            if reason:
                self._end(row)
            ids.append(row.message.id), tokens.append(token), at.append(-1 if index is None else index)
            finish.append(FINISH_REASONS.index(reason))
        return FakeEvents(
            np.array(ids, np.int64), np.array(tokens, np.int32), np.array(finish, np.uint8), np.array(at, np.int32),
            first, errors,
        )  # fmt: skip

    def take_events(self) -> FakeEvents | None:
        ids, self.cancelled_waiting = self.cancelled_waiting, []
        if not ids:
            return None
        count = len(ids)
        return FakeEvents(
            np.array(ids, np.int64), np.full(count, -1, np.int32),
            np.full(count, FINISH_REASONS.index("abort"), np.uint8), np.full(count, -1, np.int32),
        )  # fmt: skip

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.rows or self.cancelled_waiting)

    def stats(self) -> dict[str, float]:
        return {
            "running": len(self.rows), "waiting": len(self.waiting), "pages_total": 100,
            "pages_free": 100 - len(self.rows), "pages_evictable": 0, "preemptions_total": 0,
            "hit_tokens_total": self.cached_total,
        }  # fmt: skip

    def flush_cache(self) -> None:
        self.flushed += 1


class FakeHandle:
    def __init__(self, result: StepResult, error: Exception | None, ready_s: float) -> None:
        self.result, self.error, self.ready_s = result, error, ready_s

    def sample(self, masks: object) -> None:
        raise AssertionError("no step here is masked")

    def wait(self) -> StepResult:
        time.sleep(max(0.0, self.ready_s - time.monotonic()))
        if self.error is not None:
            raise self.error
        return self.result


class FakeExecutor:
    """Keeps its own mirror of the slots, as a real runner does. log: ("launch" | "wait", step)."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.step_s = step_s
        self.mirror: dict[int, Admission] = {}
        self.closed = False
        self.num_launched = 0

    def launch(self, plan: StepPlan) -> FakeHandle:
        self.num_launched += 1
        for admission in plan.admissions:
            self.mirror[admission.slot] = admission
        error: Exception | None = None
        slots, tokens, step_s = [], [], self.step_s
        for slot, seq_len, samples in zip(plan.slots.tolist(), plan.seq_lens.tolist(), plan.samples, strict=True):
            row = self.mirror[slot]
            if LAUNCH_RAISES in row.token_ids:
                raise RuntimeError("launch failed")
            if WAIT_RAISES in row.token_ids:
                error = RuntimeError("device error")
            if KILLS_PROCESS in row.token_ids and seq_len > len(row.token_ids) + 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if NEVER_ENDS in row.token_ids and seq_len > len(row.token_ids):
                time.sleep(1000)
            if samples:
                k = seq_len - row.num_prompt
                slots.append(slot)
                token = int((row.seed * 31 + int(np.sum(row.token_ids)) * 7 + k * 13) % 97)
                tokens.append(token)
        count = len(slots)
        asked = [self.mirror[slot].sampling.logprobs for slot in slots]
        logprobs = None
        if any(k is not None for k in asked):
            logprobs = Logprobs(
                np.array([-0.5 if k is not None else np.nan for k in asked], np.float32),
                np.tile(np.arange(4, dtype=np.int32), (count, 1)),
                np.tile(-np.arange(4, dtype=np.float32), (count, 1)),
            )
        result = StepResult(
            plan.step, np.array(slots, np.int32), np.array(tokens, np.int32).reshape(count, 1),
            np.ones(count, np.int32), np.zeros(count, np.bool_), logprobs, self.step_s,
        )  # fmt: skip
        return FakeHandle(result, error, time.monotonic() + step_s)

    def close(self) -> None:
        self.closed = True


def hello(max_running: int = 8) -> Hello:
    return Hello("Fake", 100, 10_000, 9_999, 100, 16, max_running, [EOS], {"pid": str(os.getpid())})


def make_engine(
    overlap: bool = False, step_s: float = 0.0, max_running: int = 8, listeners=None, **scheduler
) -> Engine:
    return Engine(
        FakeScheduler(max_running, **scheduler),
        FakeExecutor(step_s),
        hello(max_running),
        lambda message: message,
        max_slots=max_running,
        overlap=overlap,
        listeners=listeners,
    )


def add(request_id: int, prompt: list[int], seed: int = 1, **sampling) -> AddRequest:
    return AddRequest(request_id, np.array(prompt, np.int32).tobytes(), SamplingParams(**sampling), seed)


# Factories for a child process.


def build(start, progress) -> Engine:
    progress("weights", 0.5)
    return make_engine(step_s=0.002, max_running=64, max_queued=256)


def build_slow(start, progress) -> Engine:
    """Half a second a step: streams live as long as a test needs them to."""
    return make_engine(step_s=0.05, max_running=64)


def build_small_queue(start, progress) -> Engine:
    return make_engine(step_s=0.02, max_running=1, max_queued=1)


def build_with_worker(start, progress) -> Engine:
    """An engine with a process of its own, as a tensor-parallel one has; its id is in `effective`."""
    code = f"from core.engine.lifetime import die_with_parent; die_with_parent({os.getpid()})\n"
    code += "import time; print(flush=True); time.sleep(600)"
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    worker.stdout.readline()
    engine = build(start, progress)
    effective = {**engine.hello.effective, "worker": str(worker.pid)}
    engine.hello = msgspec.structs.replace(engine.hello, effective=effective)
    return engine


def build_fails(start, progress) -> Engine:
    raise CapacityError("the KV cache needs 10 GiB, 2 GiB are free", hint="lower --max-total-tokens")


def build_crashes(start, progress) -> Engine:
    os.kill(os.getpid(), signal.SIGKILL)
    raise EngineError("unreachable")


def build_hangs(start, progress) -> Engine:
    time.sleep(1000)
    raise EngineError("unreachable")
