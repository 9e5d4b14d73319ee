"""Vectors, labels and scores of texts: what the engine is asked, and what is made of its answers.

Each method of `Pooler` gives the engine's jobs and a function that makes the result of their vectors, so that the
server (which waits for many streams) and `LLM` (which runs batches) share everything but the waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from core.frontend.chat import ChatRenderer, ChatRequest
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import RequestError
from core.interfaces.params import PoolingParams
from core.interfaces.pooling import PoolingPlan

Vector = npt.NDArray[np.float32]
T = TypeVar("T")
TextOrIds = str | Sequence[int]
Side = Literal["left", "right"]

# How a model that generates is asked to judge a document; its chat template puts this in its own form.
JUDGE_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
JUDGE_USER = "<Instruct>: {instruct}\n<Query>: {query}\n<Document>: {document}"
JUDGE_INSTRUCT = "Given a web search query, retrieve relevant passages that answer the query"
JUDGE_LABELS = ("yes", "no")
# How an instruction is put before a query whose vector is compared with documents'.
QUERY_WITH_INSTRUCT = "Instruct: {instruct}\nQuery:{query}"


@dataclass(frozen=True, slots=True)
class Job:
    """One engine request: a prompt and the vector that is wanted of it."""

    token_ids: list[int]
    pooling: PoolingParams


@dataclass(frozen=True, slots=True)
class Jobs(Generic[T]):
    """finish: makes the result of the jobs' vectors, one each, in order."""

    jobs: list[Job]
    finish: Callable[[list[Vector]], T]


@dataclass(frozen=True, slots=True)
class Truncation:
    """What happens to a text that is too long. limit: tokens to cut to; None: it is refused beyond the model's limit;
    -1: cut to the model's limit. side: which end is cut. Tokens that the tokenizer adds around a text are kept."""

    limit: int | None = None
    side: Side = "right"


@dataclass(frozen=True, slots=True)
class Classified:
    """label: the most likely; None where there is only a score. scores [number of labels]: after the activation if one
    was asked for."""

    label: str
    scores: list[float]


@dataclass(frozen=True, slots=True)
class Pooler:
    """One running model, asked for vectors and scores. max_tokens: of one text."""

    plan: PoolingPlan
    renderer: ChatRenderer
    vocab_size: int
    max_tokens: int

    @property
    def tokenizer(self) -> Tokenizer:
        return self.renderer.tokenizer

    # Texts

    def token_ids(self, item: TextOrIds, param: str, truncation: Truncation | None = None) -> list[int]:
        """A text or ids as ids that the model takes. Raises RequestError naming `param`."""
        cut = truncation or Truncation()
        limit = self.max_tokens if cut.limit is None or cut.limit == -1 else cut.limit
        if not 1 <= limit <= self.max_tokens:
            raise RequestError(
                f"truncate_prompt_tokens is {cut.limit}; it must be -1 or between 1 and {self.max_tokens}",
                param="truncate_prompt_tokens",
            )
        if isinstance(item, str):
            ids, bare = self.tokenizer.encode(item), None
        else:
            ids = bare = list(item)
            wrong = next((token for token in ids if not 0 <= token < self.vocab_size), None)
            if wrong is not None:
                raise RequestError(
                    f"{param} holds {wrong}; token ids are below the vocabulary size {self.vocab_size}", param=param
                )
        if not ids:
            raise RequestError(f"{param} is empty", param=param)
        if len(ids) <= limit:
            return ids
        if cut.limit is None:
            raise self._too_long(len(ids), param)
        if bare is None:
            bare = self.tokenizer.encode(str(item), add_special_tokens=False)
        return _cut(ids, bare, limit, cut.side)

    def _too_long(self, length: int, param: str) -> RequestError:
        return RequestError(
            f"{param} has {length} tokens and this model takes at most {self.max_tokens}",
            param=param,
            code="context_length_exceeded",
            hint="shorten it, or let it be cut with truncate_prompt_tokens",
        )

    # Vectors

    def embed(self, texts: Sequence[list[int]], dimensions: int | None = None) -> Jobs[list[Vector]]:
        """A vector for each text. Raises RequestError if the model gives none, or not of that length."""
        pooling = self._pooling()
        size, allowed = self.plan.size, self.plan.dimensions
        if dimensions is not None and dimensions != size:
            if allowed is not None and dimensions not in allowed:
                way = f"one of {', '.join(map(str, allowed))}" if allowed else f"{size}, or left out"
                raise RequestError(
                    f"dimensions is {dimensions}; this model's vectors have {size}, and it must be {way}",
                    param="dimensions",
                    code="matryoshka_not_supported",
                    hint=None if allowed else "the operator can allow any with --matryoshka",
                )
            if not 1 <= dimensions <= size:
                raise RequestError(f"dimensions is {dimensions}; it must be between 1 and {size}", param="dimensions")
        normalize = self.plan.normalize or (dimensions is not None and dimensions < size)

        def finish(vectors: list[Vector]) -> list[Vector]:
            return [shaped(vector, dimensions, normalize) for vector in vectors]

        return Jobs([Job(ids, pooling) for ids in texts], finish)

    def _pooling(self) -> PoolingParams:
        if self.plan.pooling is None or self.plan.task == "classify":
            raise self.plan.refusal("vectors")
        return PoolingParams(pooling=self.plan.pooling)

    # Labels

    def classify(self, texts: Sequence[list[int]], *, activate: bool = True) -> Jobs[list[Classified]]:
        """The scores of each label, for each text. Raises RequestError if the model has no labels."""
        pooling = self._scores()
        labels = self.plan.labels

        def finish(vectors: list[Vector]) -> list[Classified]:
            return [
                Classified(labels[int(raw.argmax())], (activated(raw, self.plan) if activate else raw).tolist())
                for raw in vectors
            ]

        return Jobs([Job(ids, pooling) for ids in texts], finish)

    def _scores(self) -> PoolingParams:
        if self.plan.task != "classify":
            raise self.plan.refusal("scores of labels")
        return PoolingParams(pooling=self.plan.pooling or "last", head="scores")

    # Pairs

    def compare(
        self,
        pairs: Sequence[tuple[str, str]],
        params: Sequence[str],
        *,
        instruct: str | None = None,
        truncation: Truncation | None = None,
        activate: bool = True,
    ) -> Jobs[list[float]]:
        """How well the second text of each pair answers the first, between 0 and 1 (-1 for vectors).

        A classifier with one label judges the pair, through a sigmoid if `activate`; a model that generates answers yes
        or no, and the score is yes's share of both (`--task score`); otherwise it is the cosine of the vectors.
        params: the pairs' names in errors. Raises RequestError.
        """
        if self.plan.task == "classify":
            return self._judged_by_head(pairs, params, instruct, truncation, activate)
        if self.plan.scores:
            return self._judged_by_words(pairs, params, instruct)
        if self.plan.pooling is None:
            raise self.plan.refusal("scores of pairs")
        return self._compared(pairs, params, instruct, truncation)

    def _judged_by_head(
        self,
        pairs: Sequence[tuple[str, str]],
        params: Sequence[str],
        instruct: str | None,
        truncation: Truncation | None,
        activate: bool,
    ) -> Jobs[list[float]]:
        pooling = self._scores()
        if len(self.plan.labels) != 1:
            raise RequestError(
                f"this server's model scores {len(self.plan.labels)} labels; only a model with one ranks pairs",
                param="model", code="wrong_task", hint="ask /v1/classify",
            )  # fmt: skip
        if instruct:
            raise RequestError(
                "instruct is not supported by a model with a scoring head", param="instruct", hint="leave it out"
            )
        made = [
            self._limited(self.tokenizer.encode_pair(*pair), param, truncation)
            for pair, param in zip(pairs, params, strict=True)
        ]

        def finish(vectors: list[Vector]) -> list[float]:
            return [float((activated(raw, self.plan) if activate else raw)[0]) for raw in vectors]

        return Jobs([Job(ids, pooling) for ids in made], finish)

    def _limited(self, ids: list[int], param: str, truncation: Truncation | None) -> list[int]:
        if truncation is None or truncation.limit is None:
            if len(ids) > self.max_tokens:
                raise self._too_long(len(ids), param)
            return ids
        return self.token_ids(ids, param, truncation)

    def _judged_by_words(
        self, pairs: Sequence[tuple[str, str]], params: Sequence[str], instruct: str | None
    ) -> Jobs[list[float]]:
        labels = []
        for word in JUDGE_LABELS:
            ids = self.tokenizer.encode(word, add_special_tokens=False)
            if len(ids) != 1:
                raise RequestError(
                    f"this model's tokenizer writes {word!r} with {len(ids)} tokens, so its answer is no single token",
                    param="model", code="wrong_task", hint="a model that ranks by answering yes or no is needed",
                )  # fmt: skip
            labels.append(ids[0])
        pooling = PoolingParams(head="tokens", tokens=tuple(labels))
        jobs = []
        for (query, document), param in zip(pairs, params, strict=True):
            user = JUDGE_USER.format(instruct=instruct or JUDGE_INSTRUCT, query=query, document=document)
            chat = [{"role": "system", "content": JUDGE_SYSTEM}, {"role": "user", "content": user}]
            # The answer is wanted at once: templates that know the switch close the reasoning.
            request = ChatRequest(chat, template_variables={"enable_thinking": False})
            ids = self.renderer.prepare_now(request).token_ids
            jobs.append(Job(self._limited(ids, param, None), pooling))

        def finish(vectors: list[Vector]) -> list[float]:
            return [float(softmax(logprobs)[0]) for logprobs in vectors]

        return Jobs(jobs, finish)

    def _compared(
        self,
        pairs: Sequence[tuple[str, str]],
        params: Sequence[str],
        instruct: str | None,
        truncation: Truncation | None,
    ) -> Jobs[list[float]]:
        pooling = self._pooling()
        places: dict[str, int] = {}
        jobs: list[Job] = []

        def place(text: str, param: str) -> int:
            if text not in places:
                places[text] = len(jobs)
                jobs.append(Job(self.token_ids(text, param, truncation), pooling))
            return places[text]

        def asked(query: str) -> str:
            return QUERY_WITH_INSTRUCT.format(instruct=instruct, query=query) if instruct else query

        ends = [
            (place(asked(first), param), place(second, param))
            for (first, second), param in zip(pairs, params, strict=True)
        ]

        def finish(vectors: list[Vector]) -> list[float]:
            unit = [shaped(vector, None, True) for vector in vectors]
            return [float(unit[first] @ unit[second]) for first, second in ends]

        return Jobs(jobs, finish)

    # Tokens

    def next_tokens(
        self, texts: Sequence[list[int]], tokens: Sequence[int], *, apply_softmax: bool
    ) -> Jobs[list[list[float]]]:
        """The probability of each of `tokens` as the next, for each text; of these alone if `apply_softmax`."""
        pooling = PoolingParams(head="tokens", tokens=tuple(tokens))
        self.plan.check(pooling, self.vocab_size)

        def finish(vectors: list[Vector]) -> list[list[float]]:
            return [(softmax(raw) if apply_softmax else np.exp(raw)).tolist() for raw in vectors]

        return Jobs([Job(ids, pooling) for ids in texts], finish)


def shaped(vector: Vector, dimensions: int | None, normalize: bool) -> Vector:
    """The first `dimensions` numbers, scaled to length 1 if `normalize` (a vector of zeros stays)."""
    cut = vector if dimensions is None else vector[:dimensions]
    if not normalize:
        return cut
    length = float(np.linalg.norm(cut.astype(np.float64)))
    return (cut / length).astype(np.float32) if length > 0 else cut


def softmax(raw: Vector) -> Vector:
    """Over all of `raw`."""
    wide = np.exp(raw.astype(np.float64) - raw.max())
    return (wide / wide.sum()).astype(np.float32)


def activated(raw: Vector, plan: PoolingPlan) -> Vector:
    """A classifier's scores as probabilities: of one label among all, or of each by itself."""
    if plan.activation == "softmax":
        return softmax(raw)
    # Written so that neither end overflows.
    wide = raw.astype(np.float64)
    return np.where(wide >= 0, 1 / (1 + np.exp(-np.abs(wide))), 1 - 1 / (1 + np.exp(-np.abs(wide)))).astype(np.float32)


def _cut(ids: list[int], bare: list[int], limit: int, side: Side) -> list[int]:
    """`ids` without what is too much of `bare`, the part of it that is text."""
    extra = len(ids) - len(bare)
    before = next((at for at in range(extra + 1) if ids[at : at + len(bare)] == bare), None)
    room = limit - extra
    if before is None or room < 1:  # the tokenizer joins text and what it adds, or there is room for neither
        return ids[:limit] if side == "right" else ids[-limit:]
    text = bare[:room] if side == "right" else bare[-room:]
    return [*ids[:before], *text, *ids[before + len(bare) :]]
