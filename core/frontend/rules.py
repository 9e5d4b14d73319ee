"""What every door checks of a request before the engine sees it: parameters against the model, length, ends of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from core.frontend.parameters import Dialect, build, spellings
from core.frontend.processors import FIELDS as PROCESSORS
from core.frontend.processors import with_processors
from core.frontend.structured import FIELDS, with_grammar
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams

OWN_SHAPE = ("logprobs", "prompt_logprobs", "hidden_states")  # asked for like parameters, and no row of the table
# None: up to the context length.
DEFAULT_MAX_TOKENS = {**dict.fromkeys(Dialect), Dialect.COMPLETIONS: 16, Dialect.NATIVE: 128}


@dataclass(frozen=True, slots=True)
class RequestRules:
    """Limits of one running model.

    max_prompt_tokens: what memory allows. engine_eos: ids that the engine takes as end-of-text.
    tokenizer_eos: those that the tokenizer knows. defaults: sampling that the checkpoint recommends.
    """

    vocab_size: int
    context_length: int
    max_prompt_tokens: int
    engine_eos: tuple[int, ...] = ()
    tokenizer_eos: tuple[int, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def sampling(self, given: Mapping[str, Any], dialect: Dialect, *, logprobs: int | None = None) -> SamplingParams:
        """Request over checkpoint's recommendation over built-in default. Raises RequestError."""
        defaults = {**self.defaults, "max_tokens": DEFAULT_MAX_TOKENS[dialect]}
        return self.completed(build(given, dialect, defaults=defaults, logprobs=logprobs))

    def read(self, given: SamplingParams | Mapping[str, Any], dialect: Dialect) -> SamplingParams:
        """What a caller in process gives: parameters that are complete as they stand, with no recommendation mixed in,
        or a mapping with the native names, whose missing values are filled in as for HTTP. In the chat dialect an
        answer has no limit unless one is given. Raises RequestError, for unknown names too."""
        if isinstance(given, SamplingParams):
            return self.completed(given)
        table = spellings(Dialect.NATIVE)
        known = {*table, *OWN_SHAPE, *FIELDS, *PROCESSORS}
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            raise RequestError(
                f"there is no sampling parameter {unknown!r}",
                param=unknown,
                hint=f"there are {', '.join(sorted(known))}",
            )
        values = {name: value for name, value in given.items() if name in table}
        logprobs = given.get("logprobs")
        if dialect is Dialect.CHAT and not {"max_tokens", "max_new_tokens"} & set(values):
            # Fields of SamplingParams are names that the chat dialect knows.
            by_field = {table[name].field: value for name, value in values.items()}
            made = self.sampling(by_field, Dialect.CHAT, logprobs=logprobs)
        else:
            made = self.sampling(values, Dialect.NATIVE, logprobs=logprobs)
        others = {name: given[name] for name in OWN_SHAPE if name != "logprobs" and given.get(name) is not None}
        made = msgspec.structs.replace(made, **others) if others else made
        return with_processors(with_grammar(made, given), given)

    def completed(self, sampling: SamplingParams) -> SamplingParams:
        """`sampling`, checked against the vocabulary, with the ends of text that the engine does not know as stop
        ids. Raises RequestError."""
        sampling.check_vocabulary(self.vocab_size)
        unknown_ends = [token for token in self.tokenizer_eos if token not in self.engine_eos]
        if unknown_ends and not sampling.ignore_eos:
            ends = tuple(dict.fromkeys((*sampling.stop_token_ids, *unknown_ends)))
            sampling = msgspec.structs.replace(sampling, stop_token_ids=ends)
        return sampling

    def check_length(self, num_prompt: int, sampling: SamplingParams, param: str) -> None:
        """Raises RequestError if prompt and answer do not fit the context."""
        limit = min(self.max_prompt_tokens, self.context_length - 1)
        total = num_prompt + (sampling.max_tokens or 1)
        if num_prompt > limit:
            told = (
                f"the prompt has {num_prompt} tokens and this model takes at most {limit} "
                f"(context length {self.context_length})"
            )
        elif total > self.context_length:
            told = (
                f"the prompt has {num_prompt} tokens and the answer may have {sampling.max_tokens}: "
                f"together {total}, and the context has {self.context_length}"
            )
        else:
            return
        raise RequestError(told, param=param, code="context_length_exceeded", hint="shorten the prompt or max_tokens")


def samples(sampling: SamplingParams) -> list[tuple[SamplingParams, int | None]]:
    """One (parameters, seed) per sample: the engine knows single samples only, and a seed gives each its own."""
    single = sampling if sampling.n == 1 else msgspec.structs.replace(sampling, n=1)
    if sampling.seed is None:
        return [(single, None)] * sampling.n
    return [(single, (sampling.seed + index) % 2**63) for index in range(sampling.n)]
