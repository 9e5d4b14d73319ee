"""Host cost of one decode step: schedule, complete, and encoding of the message to the front end.

    python bench/scheduler_step.py [--requests 256] [--steps 2000] [--cache radix]

Prints milliseconds a step (median, 99th percentile). The runner is a stub that returns prepared tokens; its own
time is not counted. Every step is a pure decode; each request takes a new page every `--page-size` steps.
"""

from __future__ import annotations

import argparse
import time

import msgspec
import numpy as np

from core.config.sections import SchedulerSettings
from core.engine.messages import StepOutputs
from core.interfaces.context import PluginContext
from core.interfaces.params import SamplingParams
from core.interfaces.prefix_cache import CacheGeometry
from core.interfaces.step import StepPlan, StepResult
from core.memory.manager import MemoryManager
from core.memory.no_cache import NoCache
from core.memory.radix import RadixCache
from core.scheduler.facts import ModelFacts
from core.scheduler.request import Request
from core.scheduler.scheduler import Scheduler


def build(args: argparse.Namespace) -> Scheduler:
    """A scheduler with all requests admitted and their prompts computed."""
    length = args.prompt + args.steps + 64
    pages = args.requests * (-(-length // args.page_size) + 2) + 2
    facts = ModelFacts(length, pages, args.page_size, 8192, args.requests)
    kind = {"radix": RadixCache, "none": NoCache}[args.cache]
    memory = MemoryManager(
        kind(CacheGeometry(args.page_size), PluginContext()),
        num_pages=pages,
        page_size=args.page_size,
        num_slots=args.requests,
        max_pages=facts.max_pages,
    )
    scheduler = Scheduler(SchedulerSettings(max_running_requests=args.requests), facts, memory)
    rng = np.random.default_rng(0)
    for i in range(args.requests):
        prompt = rng.integers(10, 1000, args.prompt).astype(np.int32)
        sampling = SamplingParams(stop_token_ids=(3, 4))
        scheduler.add(Request(i, prompt, sampling, seed=i, eos_token_ids=(1, 2)))
    while True:
        plan = scheduler.schedule()
        assert plan is not None
        if plan.num_decodes == args.requests:
            scheduler.complete(answer(plan))
            return scheduler
        scheduler.complete(answer(plan))


def answer(plan: StepPlan) -> StepResult:
    """Tokens that end nothing."""
    slots = plan.slots[plan.samples]
    n = len(slots)
    return StepResult(plan.step, slots, np.full((n, 1), 77, np.int32), np.ones(n, np.int32), np.zeros(n, np.bool_))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--cache", choices=("radix", "none"), default="radix")
    args = parser.parse_args()
    scheduler = build(args)
    encoder = msgspec.msgpack.Encoder()
    times = np.empty((args.steps, 3))
    for i in range(args.steps):
        t0 = time.perf_counter()
        plan = scheduler.schedule()
        t1 = time.perf_counter()
        assert plan is not None
        result = answer(plan)
        t2 = time.perf_counter()
        events = scheduler.complete(result)
        t3 = time.perf_counter()
        outputs = StepOutputs(
            ids=events.ids.tobytes(),
            tokens=events.tokens.tobytes(),
            finish=events.finish.tobytes(),
            first=events.first,
            errors=events.errors,
        )
        encoder.encode(outputs)
        t4 = time.perf_counter()
        times[i] = t1 - t0, t3 - t2, t4 - t3
    times *= 1e3
    print(f"{args.requests} running requests, pure decode, {args.steps} steps, prefix cache {args.cache}")
    print(f"{'ms a step':<22}{'median':>9}{'p99':>9}")
    rows = {
        "schedule": times[:, 0],
        "complete": times[:, 1],
        "encode": times[:, 2],
        "schedule + complete": times[:, :2].sum(1),
        "all": times.sum(1),
    }
    for name, values in rows.items():
        print(f"{name:<22}{np.median(values):9.4f}{np.percentile(values, 99):9.4f}")


if __name__ == "__main__":
    main()
