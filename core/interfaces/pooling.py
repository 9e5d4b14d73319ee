"""What a server gives beside text: vectors and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.interfaces.errors import RequestError
from core.interfaces.params import PoolingParams
from core.interfaces.spec import Pooling, Task


@dataclass(frozen=True, slots=True)
class PoolingPlan:
    """What a server gives beside text, as decided at the start.

    task: what the model is built for. scores: a model that generates judges documents as well (`--task score`).
    pooling: how a text's vector is made; None: the model gives no vectors. normalize: vectors have length 1.
    dimensions: lengths that a client may cut vectors to; empty: it may not; None: to any. size: of a whole vector.
    labels, activation: of a classifier's scores.
    """

    task: Task = "generate"
    scores: bool = False
    pooling: Pooling | None = None
    normalize: bool = True
    dimensions: tuple[int, ...] | None = ()
    size: int = 0
    labels: tuple[str, ...] = ()
    activation: Literal["softmax", "sigmoid"] = "softmax"

    @property
    def shown_task(self) -> str:
        """The task as the operator knows it."""
        return "score" if self.scores else self.task

    def refusal(self, wanted: str) -> RequestError:
        """The error of a request that wants what this model does not do. wanted: e.g. "text", "vectors"."""
        ways = {
            "vectors": "start it with --task embed, or with --pooling last or mean",
            "scores of pairs": "start it with --task score, if it is made to judge by yes or no, or with --task embed",
        }
        return RequestError(
            f"this server's model gives no {wanted}: its task is {self.shown_task!r}",
            param="model",
            code="wrong_task",
            hint=ways.get(wanted) if self.task == "generate" else None,
        )

    def check(self, pooling: PoolingParams | None, vocab_size: int) -> None:
        """Raises RequestError unless the model was built for what is asked: None is text."""
        if pooling is None:
            if self.task != "generate":
                raise self.refusal("text")
        elif pooling.head == "scores":
            if self.task != "classify":
                raise self.refusal("scores of labels")
        elif pooling.head == "tokens":
            if self.task != "generate":
                raise self.refusal("log-probabilities of tokens")
            if not pooling.tokens or any(not 0 <= token < vocab_size for token in pooling.tokens):
                raise RequestError(
                    f"tokens is {list(pooling.tokens)}; it must hold token ids below the vocabulary size {vocab_size}",
                    param="label_token_ids",
                )
        elif self.pooling is None or self.task == "classify":
            raise self.refusal("vectors")
