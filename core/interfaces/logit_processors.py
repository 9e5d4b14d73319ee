"""LogitProcessor: changes the logits of requests that ask for it, before a token is drawn.

Processors are code that the operator installs and enables by name (`--logit-processors NAME`); a request brings a name
and arguments, never code.

The order in a step: the model's logits; logit bias and penalties; processors, in the request's order; `min_tokens`;
token masks of grammars; temperature, filters, draw. So a processor can neither end a text before `min_tokens` nor leave
its grammar. Log-probabilities that a request asks for are of the model's own logits, whatever processors do.

A step with such rows is launched without sampling: the tokens of the steps before it are known, on the host, when
`apply` is called, with and without overlap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from core.interfaces.context import PluginContext

if TYPE_CHECKING:
    import torch

Int32 = npt.NDArray[np.int32]


class TokenVocabulary(Protocol):
    """What the model's tokens stand for. size: width of the logits. eos_token_ids: ids that end a text."""

    @property
    def size(self) -> int: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    def token_bytes(self, token_id: int) -> bytes:
        """Of any id below `size`, special tokens too; b"" for ids that stand for nothing."""

    def id_of(self, text: str) -> int | None:
        """The one token that stands for `text`, special tokens too; None if there is none."""

    def encode(self, text: str) -> tuple[int, ...]:
        """`text` as tokens; special tokens that it spells become one token each, and none is added."""


@dataclass(frozen=True, slots=True)
class RowState:
    """One row of `apply`. prompt, generated: token ids so far, int32 and read-only; `generated` grows from step to
    step and is complete. state: what `open` returned for this request."""

    prompt: Int32
    generated: Int32
    state: Any


class LogitProcessor(ABC):
    """One instance for an engine, used from its step thread only, but for `open`.

    keeps_order: whether, of two tokens, it never makes the one with the lower logit the one with the higher. It is then
    left out for greedy requests whose other processors, if any come after it, keep the order too.
    """

    keeps_order: ClassVar[bool] = False

    def __init__(self, vocabulary: TokenVocabulary, ctx: PluginContext) -> None:
        self.vocabulary = vocabulary
        self.ctx = ctx

    @abstractmethod
    def open(self, arguments: Mapping[str, Any]) -> Any:
        """The state of one request, from its arguments (an object of JSON, {} if the request gave none). Raises
        RequestError or ValueError (a pydantic ValidationError is one), which the client gets as a 400.

        Called where the request is checked, where it is admitted, and again when it goes on after a preemption, on any
        of the engine's threads: quick, and without memory of earlier calls. What a state has learned in `apply` must be
        in prompt and generated tokens as well, for a state that was opened later gets these at once.
        """

    @abstractmethod
    def apply(self, rows: Sequence[RowState], logits: torch.Tensor) -> None:
        """Change `logits` [len(rows), V] float32 in place; row i belongs to rows[i], on the model's device. It is a
        copy of these rows, and not kept after the call. Minus infinity makes a token impossible.

        Called once a step with all requests of this processor that get a token. A row must come out the same whatever
        other rows are there, and on every rank of a model: no clock, no random numbers but those made from arguments
        and tokens. After the last token of a text there may be one more call whose result is not used. Reading device
        values on the host makes the step wait.

        If it raises, its requests of this step end with an error that names it; a row with NaN, plus infinity or
        nothing but minus infinity ends that row's request.
        """
