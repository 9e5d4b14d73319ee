"""Host cost of one decode step of the whole engine loop, without listeners and with one.

    python bench/hooks_step.py [--requests 256] [--steps 3000]

Prints microseconds a step (median, 99th percentile) of `Engine.step`: schedule, launch, complete, outputs, records. The
executor is a stub that returns prepared tokens. Two engines, one without and one with a listener of everything that
engines tell while they run, take turns, so that a busy machine slows both; the difference is the cost of being listened
to. Compare a run of an older version to see the cost where nobody listens.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from scheduler_step import answer, build

from core.engine.engine import Engine
from core.engine.messages import Hello
from core.interfaces.step import StepPlan, StepResult


class Stub:
    """An executor that computes nothing."""

    def launch(self, plan: StepPlan) -> Stub:
        self._result = answer(plan)
        return self

    def wait(self) -> StepResult:
        return self._result

    def close(self) -> None:
        return None


def make(args: argparse.Namespace, listening: bool) -> Engine:
    """An engine whose requests are all decoding."""
    options: dict[str, Any] = {}
    if listening:
        from core.engine.listeners import EngineListeners
        from core.hooks import HookManager
        from core.interfaces.context import PluginContext
        from core.interfaces.hooks import HookPlugin, hookimpl
        from core.registry.records import PluginRecord

        class Counts(HookPlugin):
            num_steps = num_requests = 0

            @hookimpl
            def core_request_admitted(self, request: Any) -> None:
                self.num_requests += 1

            @hookimpl
            def core_request_finished(self, request: Any) -> None:
                self.num_requests -= 1

            @hookimpl
            def core_steps_done(self, steps: Any) -> None:
                self.num_steps += len(steps)

        hooks = HookManager([(PluginRecord("hooks", "counts", "bench"), Counts(PluginContext()))])
        options["listeners"] = EngineListeners.of(hooks, args.requests)
    hello = Hello("Bench", 1000, 10**6, 10**6, 1, args.page_size, args.requests, [], {})
    return Engine(build(args), Stub(), hello, lambda message: message, max_slots=args.requests, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--cache", choices=("radix", "none"), default="radix")
    parser.add_argument("--only-without", action="store_true", help="runs on versions that know no hooks, too")
    args = parser.parse_args()
    engines = {"nobody listens": make(args, False)}
    if not args.only_without:
        engines["one listener"] = make(args, True)
    times = {name: np.empty(args.steps) for name in engines}
    for at in range(args.steps):
        for name, engine in engines.items():
            start_s = time.perf_counter()
            engine.step()
            times[name][at] = time.perf_counter() - start_s
    print(f"{args.requests} running requests, pure decode, {args.steps} steps")
    print(f"{'us a step':<18}{'median':>9}{'p99':>9}")
    for name, values in times.items():
        print(f"{name:<18}{np.median(values) * 1e6:9.1f}{np.percentile(values, 99) * 1e6:9.1f}")


if __name__ == "__main__":
    main()
