"""`LLM.embed`, `classify`, `score` and `rerank`: the part of `LLM` that makes no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from core.engine.client import EngineRequest
from core.engine.offline import OfflineEngine
from core.frontend.chat import ChatRenderer
from core.frontend.pooling import Classified, Jobs, Pooler, TextOrIds, Truncation, Vector
from core.interfaces.errors import EngineError, RequestError
from core.interfaces.params import SamplingParams
from core.interfaces.pooling import PoolingPlan

T = TypeVar("T")
Texts = TextOrIds | Sequence[TextOrIds]


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document of `rerank`. index: its place in what was given."""

    index: int
    document: str
    score: float


class PoolingMethods:
    """Mixed into `LLM`, which has the engine and the renderer."""

    _engine: OfflineEngine
    _renderer: ChatRenderer
    _plan: PoolingPlan = PoolingPlan()

    @property
    def _pooler(self) -> Pooler:
        hello = self._engine.engine.hello
        limit = min(hello.context_length, hello.max_prompt_tokens + 1)
        return Pooler(self._plan, self._renderer, hello.vocab_size, limit)

    def embed(
        self,
        texts: Texts,
        *,
        dimensions: int | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[Vector]:
        """A vector [size] float32 for each text or list of ids, in order.

        dimensions: cut to so many numbers, where the model or the setting `matryoshka` allows it.
        truncate_prompt_tokens: cut longer texts; -1 to what the model takes. Raises RequestError, also if the model
        gives no vectors: make the LLM with task="embed", or with pooling="last" or "mean".
        """
        return self._run_jobs(self._pooler.embed(self._ids(texts, truncate_prompt_tokens), dimensions))

    def classify(
        self, texts: Texts, *, activation: bool = True, truncate_prompt_tokens: int | None = None
    ) -> list[Classified]:
        """The label and the scores of each text, in order: probabilities, or as the head gives them without
        `activation`. Raises RequestError, also if the model has no labels."""
        return self._run_jobs(self._pooler.classify(self._ids(texts, truncate_prompt_tokens), activate=activation))

    def score(
        self, text_1: str | Sequence[str], text_2: str | Sequence[str], *, activation: bool = True
    ) -> list[float]:
        """How well each of text_2 answers text_1 (one, or one each): by a head with one label, by yes or no
        (task="score"), or by the cosine of vectors. Raises RequestError."""
        second = [text_2] if isinstance(text_2, str) else list(text_2)
        first = [text_1] if isinstance(text_1, str) else list(text_1)
        first = first * len(second) if len(first) == 1 else first
        if len(first) != len(second):
            raise RequestError(f"text_1 holds {len(first)} texts and text_2 {len(second)}", param="text_1")
        names = [f"text_2[{index}]" for index in range(len(second))]
        pairs = list(zip(first, second, strict=True))
        return self._run_jobs(self._pooler.compare(pairs, names, activate=activation))

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, instruct: str | None = None
    ) -> list[Ranked]:
        """The documents by how well they answer the query, best first; scores as in `score`. instruct: what makes a
        document relevant, for models that are told. Raises RequestError."""
        pairs = [(query, document) for document in documents]
        names = [f"documents[{index}]" for index in range(len(pairs))]
        scores = self._run_jobs(self._pooler.compare(pairs, names, instruct=instruct))
        ranked = sorted(range(len(pairs)), key=lambda index: -scores[index])[:top_n]
        return [Ranked(index, documents[index], scores[index]) for index in ranked]

    def _ids(self, texts: Texts, limit: int | None) -> list[list[int]]:
        single = isinstance(texts, str) or (len(texts) > 0 and isinstance(texts[0], int))
        items: list[TextOrIds] = [texts] if single else list(texts)  # type: ignore[list-item, arg-type]
        pooler, truncation = self._pooler, Truncation(limit)
        return [pooler.token_ids(item, f"texts[{index}]", truncation) for index, item in enumerate(items)]

    def _run_jobs(self, jobs: Jobs[T]) -> T:
        """Raises what went wrong with the first job that failed."""
        requests = [
            EngineRequest(np.asarray(job.token_ids, np.int32), SamplingParams(max_tokens=1), pooling=job.pooling)
            for job in jobs.jobs
        ]
        vectors: list[Vector] = []
        for chunk in self._engine.generate(requests):
            found = next((extras.pooled for extras in chunk.extras or () if extras.pooled), None)
            if found is None:
                raise EngineError(chunk.error or "the engine ended the request without a vector")
            vectors.append(np.frombuffer(found, "<f4"))
        return jobs.finish(vectors)
