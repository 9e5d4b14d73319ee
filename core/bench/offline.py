"""The engine in this process under a batch of token-id requests; no tokenizer is needed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from core.bench.datasets import Conversation
from core.bench.report import RequestRecord
from core.config.sections import Settings
from core.engine.build import build_engine
from core.engine.client import EngineRequest, TokenChunk
from core.engine.offline import OfflineEngine
from core.interfaces.params import SamplingParams
from core.registry import Catalog
from core.registry.resolve import resolve


class OfflineBench:
    """An engine for measurements. start_s: seconds that building it took.

    Raises whatever stops the engine's start.
    """

    def __init__(self, settings: Settings) -> None:
        begin = time.perf_counter()
        resolution = resolve(settings, Catalog.scan())
        self._engine = OfflineEngine(build_engine(settings, resolution), random_seed=0)
        self.vocab_size = resolution.spec.vocab_size
        self.start_s = time.perf_counter() - begin

    def __enter__(self) -> OfflineBench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.engine.close()

    def run(self, conversations: Sequence[Conversation]) -> tuple[list[RequestRecord], float]:
        """All requests at once, greedy, end-of-text ignored: one record each, and the wall time in seconds."""
        requests = [
            EngineRequest(
                np.asarray(conversation.token_ids, np.int32),
                SamplingParams(temperature=0.0, max_tokens=conversation.output_len, ignore_eos=True),
            )
            for conversation in conversations
        ]
        records = [RequestRecord(0.0, prompt_tokens=len(request.prompt)) for request in requests]
        last = [0.0] * len(requests)
        begin = time.perf_counter()

        def take(index: int, chunk: TokenChunk) -> bool:
            record, now = records[index], time.perf_counter() - begin
            if chunk.tokens:
                if record.output_tokens:
                    record.gaps_s.append(now - last[index])
                else:
                    record.first_token_s = now
                last[index] = now
            record.output_tokens += len(chunk.tokens)
            record.cached_tokens += chunk.cached_tokens or 0
            if chunk.finish_reason is not None:
                record.end_s, record.error = now, chunk.error
            return False

        self._engine.generate(requests, take)
        return records, time.perf_counter() - begin
