"""Sampling parameters: one immutable row per request, shared by HTTP, command line and `LLM`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from core.interfaces.errors import RequestError

MAX_STOP_STRINGS = 32
MAX_STOP_REGEX_CHARS = 256
MAX_BAD_WORDS = 256
MAX_LOGPROBS = 64
MAX_PROCESSORS = 8
MAX_ARGUMENTS_BYTES = 64 << 10  # of one processor
MAX_COUNT = 2**31 - 1  # of tokens: what an engine's numbers hold
GREEDY_TEMPERATURE = 1e-5  # below this, sampling is arg max


class GrammarParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the text must fit. kind, text: as `core.interfaces.grammar.GrammarSource`. after: the grammar begins behind
    the first occurrence of this text in the answer (the end of reasoning); None: at once. param: the request's field
    that it came from, and schemas: those that a structure's different JSON schemas came from, in the order in which a
    walk finds them; named in errors."""

    kind: str
    text: str = ""
    after: str | None = None
    param: str = ""
    schemas: tuple[str, ...] = ()


class ProcessorParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One logit processor plugin by name, with the request's own arguments as JSON text. param: the request's field
    that it came from, named in errors."""

    name: str
    arguments: str = "{}"
    param: str = "logit_processors"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to pick the next tokens of one request.

    max_tokens: most tokens to generate; None means up to the context length.
    min_tokens: end-of-text and stop ids are forbidden before this many tokens.
    temperature: 0 is greedy. top_k: -1 is off. top_p in (0, 1]. min_p in [0, 1].
    frequency_penalty, presence_penalty in [-2, 2], over generated tokens (OpenAI's definition).
    repetition_penalty in (0, 2], over prompt and generated tokens (Keskar et al. 2019, CTRL).
    logit_bias: token id -> value added to its logit.
    stop: strings that end the text (not returned unless include_stop_str_in_output). stop_regex: regular expressions
        that do, in Python's syntax; the first place where one is found counts.
    allowed_token_ids: the only tokens that may be generated, ends of text included; empty: all.
    bad_words: texts that may not be generated, in the tokens that they are cut into. bad_token_ids: those tokens, which
        the front end fills in: of each sequence, the last token may not follow the others.
    stop_token_ids: ids that end the text. ignore_eos: go on past end-of-text.
    seed: 64-bit; with it the text does not depend on what else is in the batch. None draws one.
    logprobs: None is off; k >= 0 returns the chosen token's log-probability and the k best.
    n: number of independent samples of one prompt.
    prompt_logprobs: None is off; k >= 0 returns each prompt token's log-probability given those before it, and the k
        best. prompt_logprobs_start: index of the first token that has one (the very first never has).
    hidden_states: "last" returns the final hidden state that each generated token was drawn from, "all" those of the
        prompt too; None is off.
    grammar: what the text must fit. processors: plugins that edit logits, in order.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    bad_token_ids: tuple[tuple[int, ...], ...] = ()
    stop: tuple[str, ...] = ()
    stop_regex: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None
    logprobs: int | None = None
    n: int = 1
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 0
    hidden_states: Literal["last", "all"] | None = None
    grammar: GrammarParams | None = None
    processors: tuple[ProcessorParams, ...] = ()

    def __post_init__(self) -> None:
        """Raises RequestError naming the first field out of range, its value and the allowed range."""
        if self.max_tokens is not None:
            _require(
                1 <= self.max_tokens <= MAX_COUNT, "max_tokens", self.max_tokens, f"at least 1 and at most {MAX_COUNT}"
            )
            _require(
                self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens,
                f"at most max_tokens ({self.max_tokens})",
            )  # fmt: skip
        _require(
            0 <= self.min_tokens <= MAX_COUNT, "min_tokens", self.min_tokens, f"at least 0 and at most {MAX_COUNT}"
        )
        _require(_in(self.temperature, 0.0, 100.0), "temperature", self.temperature, "between 0 and 100")
        _require(_in(self.top_p, 0.0, 1.0) and self.top_p > 0, "top_p", self.top_p, "in (0, 1]")
        _require(
            self.top_k == -1 or 1 <= self.top_k <= MAX_COUNT, "top_k", self.top_k,
            f"-1 (off) or at least 1 and at most {MAX_COUNT}",
        )  # fmt: skip
        _require(_in(self.min_p, 0.0, 1.0), "min_p", self.min_p, "between 0 and 1")
        for name in ("frequency_penalty", "presence_penalty"):
            _require(_in(getattr(self, name), -2.0, 2.0), name, getattr(self, name), "between -2 and 2")
        _require(
            _in(self.repetition_penalty, 0.0, 2.0) and self.repetition_penalty > 0,
            "repetition_penalty", self.repetition_penalty, "in (0, 2]",
        )  # fmt: skip
        for token, bias in (self.logit_bias or {}).items():
            _require(token >= 0 and math.isfinite(bias), "logit_bias", {token: bias}, "{token id: finite number}")
        for name in ("stop", "stop_regex"):
            given = getattr(self, name)
            _require(len(given) <= MAX_STOP_STRINGS, name, len(given), f"at most {MAX_STOP_STRINGS} strings")
            _require(all(given), name, list(given), "non-empty strings")
        longest = max(map(len, self.stop_regex), default=0)
        _require(
            longest <= MAX_STOP_REGEX_CHARS, "stop_regex", f"{longest} characters", f"at most {MAX_STOP_REGEX_CHARS}"
        )
        for name in ("stop_token_ids", "allowed_token_ids"):
            _require(all(t >= 0 for t in getattr(self, name)), name, list(getattr(self, name)), "ids >= 0")
        _require(len(self.bad_words) <= MAX_BAD_WORDS, "bad_words", len(self.bad_words), f"at most {MAX_BAD_WORDS}")
        _require(all(self.bad_words), "bad_words", list(self.bad_words), "non-empty strings")
        _require(all(self.bad_token_ids), "bad_token_ids", list(self.bad_token_ids), "non-empty sequences")
        if self.seed is not None:
            _require(-(2**63) <= self.seed < 2**64, "seed", self.seed, "a 64-bit integer")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _require(0 <= value <= MAX_LOGPROBS, name, value, f"between 0 and {MAX_LOGPROBS}")
        start = self.prompt_logprobs_start
        _require(0 <= start <= MAX_COUNT, "prompt_logprobs_start", start, f"at least 0 and at most {MAX_COUNT}")
        _require(self.n >= 1, "n", self.n, "at least 1")
        count = len(self.processors)
        _require(count <= MAX_PROCESSORS, "logit_processors", count, f"at most {MAX_PROCESSORS} processors")
        for processor in self.processors:
            size, name = len(processor.arguments.encode()), f"{processor.param}.arguments"
            _require(size <= MAX_ARGUMENTS_BYTES, name, f"{size} bytes", f"at most {MAX_ARGUMENTS_BYTES} bytes")

    @property
    def needs_prompt(self) -> bool:
        """Whether every prompt position has to be computed, so that a cached prefix is of no use."""
        return self.prompt_logprobs is not None or self.hidden_states == "all"

    @property
    def greedy(self) -> bool:
        """Whether sampling is arg max."""
        return self.temperature < GREEDY_TEMPERATURE or self.top_k == 1

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises RequestError if a token id in logit_bias, stop_token_ids or allowed_token_ids is outside the
        vocabulary."""
        for name in ("logit_bias", "stop_token_ids", "allowed_token_ids"):
            ids: Iterable[int] = getattr(self, name) or ()
            for token in ids:
                _require(token < vocab_size, name, token, f"token ids below the vocabulary size {vocab_size}")


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request that wants one vector instead of a text.

    pooling: which final hidden states make it: "last" and "first" (CLS) token, or their "mean".
    head: "none" gives the pooled hidden state, "scores" what the model's classification head makes of it, "tokens" the
        log-probabilities of `tokens` as the next token, over the whole vocabulary.
    """

    pooling: Literal["last", "mean", "first"] = "last"
    head: Literal["none", "scores", "tokens"] = "none"
    tokens: tuple[int, ...] = ()


def _in(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high


def _require(ok: bool, name: str, value: Any, allowed: str) -> None:
    if not ok:
        raise RequestError(f"{name} is {value!r}; it must be {allowed}", param=name)
