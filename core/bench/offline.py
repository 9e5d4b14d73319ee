"""The engine in this process under a batch of token-id requests; no tokenizer is needed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from core.bench.datasets import Conversation
from core.bench.report import RequestRecord
from core.config.sections import Settings
from core.engine.client import EngineRequest, TokenChunk
from core.engine.environment import apply_environment, device_environment
from core.engine.spinning import spin_briefly
from core.interfaces.params import SamplingParams
from core.registry import Catalog
from core.registry.resolve import resolve

if TYPE_CHECKING:
    from core.runner.runner import ModelRunner


def prepare(settings: Settings) -> Catalog:
    """Set the variables that the device wants in this process. Call it before anything that imports torch, which reads
    them when it is loaded. Returns the installed plugins."""
    catalog = Catalog.scan()
    spin_briefly(os.environ)
    apply_environment(device_environment(settings, catalog), settings.engine.device)
    return catalog


class OfflineBench:
    """An engine for measurements. start_s: seconds that building it took.

    Raises whatever stops the engine's start.
    """

    def __init__(self, settings: Settings) -> None:
        begin = time.perf_counter()
        settings = settings.for_throughput()
        catalog = prepare(settings)
        from core.engine.build import build_engine  # with it comes torch, which reads what has just been set
        from core.engine.offline import OfflineEngine

        self.resolution = resolve(settings, catalog)
        self._engine = OfflineEngine(build_engine(settings, self.resolution), random_seed=0)
        self.engine = self._engine.engine
        self.vocab_size = self.resolution.spec.vocab_size
        self.start_s = time.perf_counter() - begin

    def __enter__(self) -> OfflineBench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()

    @property
    def runner(self) -> ModelRunner:
        """What runs the model (of the first rank, where there are several)."""
        runner: ModelRunner = self.engine.executor.runner  # type: ignore[attr-defined]
        return runner

    def run(
        self,
        conversations: Sequence[Conversation],
        *,
        temperature: float = 0.0,
        after_first: Callable[[], None] | None = None,
    ) -> tuple[list[RequestRecord], float]:
        """All requests at once, end-of-text ignored: one record each, and the wall time in seconds.

        after_first: called once, when every request has its first token.
        """
        requests = [
            EngineRequest(
                np.asarray(conversation.token_ids, np.int32),
                SamplingParams(temperature=temperature, max_tokens=conversation.output_len, ignore_eos=True),
            )
            for conversation in conversations
        ]
        records = [RequestRecord(0.0, prompt_tokens=len(request.prompt)) for request in requests]
        last = [0.0] * len(requests)
        waiting = len(requests)
        begin = time.perf_counter()

        def take(index: int, chunk: TokenChunk) -> bool:
            nonlocal waiting
            record, now = records[index], time.perf_counter() - begin
            if chunk.tokens:
                if record.output_tokens:
                    record.gaps_s.append(now - last[index])
                else:
                    record.first_token_s = now
                    waiting -= 1
                    if not waiting and after_first is not None:
                        after_first()
                last[index] = now
            record.output_tokens += len(chunk.tokens)
            record.cached_tokens += chunk.cached_tokens or 0
            if chunk.finish_reason is not None:
                record.end_s, record.error = now, chunk.error
            return False

        self._engine.generate(requests, take)
        return records, time.perf_counter() - begin
