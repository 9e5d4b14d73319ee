"""Steps on a thread of their own, so that the host can plan the next one on hardware without streams.

PyTorch releases the interpreter lock inside its kernels; scheduling and output handling run meanwhile.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from core.interfaces.step import StepPlan, StepResult, TokenMasks
from core.runner.executor import Launches, StepHandle


class ThreadExecutor:
    """One worker thread; plans run one after another in the order of `launch`, which returns at once.

    An exception in the worker is raised by `wait` of the step it belongs to.
    """

    def __init__(self, runner: Launches) -> None:
        self.runner = runner
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="core-step")

    def launch(self, plan: StepPlan) -> StepHandle:
        return _FutureStep(self._pool, self._pool.submit(self.runner.launch, plan))

    def close(self) -> None:
        """Wait for launched steps and end the thread; `launch` then raises RuntimeError."""
        self._pool.shutdown(wait=True)


class _FutureStep:
    def __init__(self, pool: ThreadPoolExecutor, future: Future[StepHandle]) -> None:
        self._pool = pool
        self._future = future
        self._sampled: Future[None] | None = None

    def sample(self, masks: TokenMasks | None) -> None:
        self._sampled = self._pool.submit(lambda: self._future.result().sample(masks))

    def done(self) -> bool:
        if self._sampled is not None and not self._sampled.done():
            return False
        return self._future.done() and (self._future.exception() is not None or self._future.result().done())

    def wait(self) -> StepResult:
        if self._sampled is not None:
            self._sampled.result()
        return self._future.result().wait()
