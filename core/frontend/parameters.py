"""One table of sampling parameters: what each is called in every dialect, and its type.

The HTTP request models, the native `sampling_params` object and `LLM` are all made from it, so that a parameter is
added in one place. Ranges are checked by `SamplingParams` itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams


class Dialect(StrEnum):
    """Whose names a request uses."""

    CHAT = "chat"  # /v1/chat/completions
    COMPLETIONS = "completions"  # /v1/completions
    NATIVE = "native"  # /generate, LLM, `core generate`
    RESPONSES = "responses"  # /v1/responses
    MESSAGES = "messages"  # /v1/messages
    OLLAMA = "ollama"  # `options` of /api/chat and /api/generate


@dataclass(frozen=True, slots=True)
class Parameter:
    """field: of SamplingParams. type: what JSON may hold. names: spellings in order of precedence; the field's own
    name where a dialect is not listed."""

    field: str
    type: Any
    summary: str
    names: Mapping[Dialect, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def spellings(self, dialect: Dialect) -> tuple[str, ...]:
        return self.names.get(dialect, (self.field,))


def _named(native: str, *, chat: str | None = None) -> dict[Dialect, tuple[str, ...]]:
    return {Dialect.NATIVE: (native,), **({Dialect.CHAT: (chat,)} if chat else {})}


_KEEP_STOP = ("include_stop_str_in_output", "no_stop_trim")

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "max_tokens", int, "Most tokens to generate.",
        {
            Dialect.CHAT: ("max_completion_tokens", "max_tokens"),
            Dialect.NATIVE: ("max_new_tokens", "max_tokens"),
            Dialect.RESPONSES: ("max_output_tokens",),
            Dialect.OLLAMA: ("num_predict",),
        },
    ),
    Parameter(
        "min_tokens", int, "Neither end-of-text nor a stop counts before this many tokens.",
        {Dialect.NATIVE: ("min_new_tokens", "min_tokens")},
    ),
    Parameter("temperature", float, "0 is greedy."),
    Parameter("top_p", float, "Sample from the smallest set of tokens with this much probability."),
    Parameter("top_k", int, "Sample from the k likeliest tokens; -1 or 0 is off."),
    Parameter("min_p", float, "Leave out tokens less likely than this share of the likeliest."),
    Parameter("frequency_penalty", float, "Subtracted per earlier occurrence in the answer."),
    Parameter("presence_penalty", float, "Subtracted once for tokens that occur in the answer."),
    Parameter(
        "repetition_penalty", float, "Divides the logits of tokens that occurred; 1 is off.",
        {Dialect.OLLAMA: ("repeat_penalty",)},
    ),
    Parameter("logit_bias", dict[int, float], "Token id to a value added to its logit."),
    Parameter("allowed_token_ids", list[int], "The only tokens that may be generated, ends of text included."),
    Parameter("bad_words", list[str], "Texts that may not be generated, as the tokens that they are cut into."),
    Parameter("stop", str | list[str], "Strings that end the text.", {Dialect.MESSAGES: ("stop_sequences",)}),
    Parameter("stop_regex", str | list[str], "Regular expressions that end the text where they are first found."),
    Parameter("stop_token_ids", list[int], "Token ids that end the text."),
    Parameter("ignore_eos", bool, "Go on past end-of-text."),
    Parameter(
        "include_stop_str_in_output", bool, "Keep the stop string in the text.",
        {Dialect.CHAT: _KEEP_STOP, Dialect.COMPLETIONS: _KEEP_STOP, Dialect.NATIVE: _KEEP_STOP},
    ),
    Parameter("skip_special_tokens", bool, "Leave special tokens out of the text."),
    Parameter("seed", int, "Makes the answer repeatable.", {Dialect.NATIVE: ("sampling_seed", "seed")}),
    Parameter("n", int, "Independent samples of one prompt."),
)  # fmt: skip

# Fields of SamplingParams that each dialect gives in a shape of its own (logprobs and top_logprobs, return_logprob,
# response_format, ...).
OTHER_FIELDS = frozenset(
    {"logprobs", "prompt_logprobs", "prompt_logprobs_start", "hidden_states", "grammar", "processors", "bad_token_ids"}
)
MODEL_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


_NAMES = {dialect: tuple((parameter, parameter.spellings(dialect)) for parameter in PARAMETERS) for dialect in Dialect}


def spellings(dialect: Dialect) -> dict[str, Parameter]:
    """Every name that the dialect knows -> its parameter."""
    return {name: parameter for parameter in PARAMETERS for name in parameter.spellings(dialect)}


def build(
    given: Mapping[str, Any],
    dialect: Dialect,
    *,
    defaults: Mapping[str, Any] | None = None,
    logprobs: int | None = None,
) -> SamplingParams:
    """SamplingParams from values by the dialect's names; None counts as not given.

    defaults: by field of SamplingParams, used where nothing was given.
    Raises RequestError naming the field, for a wrong type or range. Unknown names are the caller's to judge.
    """
    values: dict[str, Any] = {key: value for key, value in (defaults or {}).items() if value is not None}
    for parameter, names in _NAMES[dialect]:
        for name in names:
            value = given.get(name)
            if value is not None:
                values[parameter.field] = _converted(name, parameter, value)
                break
    if logprobs is not None:
        values["logprobs"] = logprobs
    try:
        return SamplingParams(**values)
    except RequestError as error:
        raise _in_dialect(error, given, dialect) from error


def _in_dialect(error: RequestError, given: Mapping[str, Any], dialect: Dialect) -> RequestError:
    """The same error with the name that the caller typed."""
    for parameter in PARAMETERS:
        if parameter.field == error.param:
            typed = next((name for name in parameter.spellings(dialect) if given.get(name) is not None), error.param)
            message = error.message.replace(parameter.field, typed, 1)
            return RequestError(message, param=typed, code=error.code, status=error.status, hint=error.hint)
    return error


def _converted(name: str, parameter: Parameter, value: Any) -> Any:
    """`value` as SamplingParams wants it. Strict: "0.5" is no number, true is no integer."""
    if parameter.field == "logit_bias":
        return _bias(name, value)
    if parameter.field == "top_k" and value == 0 and type(value) is int:
        return -1  # another server's way of saying off
    if parameter.type is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError as error:
            raise RequestError(f"{name} is larger than numbers may be", param=name) from error
    try:
        checked = msgspec.convert(value, parameter.type, strict=True)
    except msgspec.ValidationError as error:
        raise RequestError(f"{name} is {value!r}: {_plain(error)}", param=name) from error
    if parameter.field in ("stop", "stop_regex"):
        return (checked,) if isinstance(checked, str) else tuple(checked)
    return tuple(checked) if isinstance(checked, list) else checked


def _bias(name: str, value: Any) -> dict[int, float]:
    """JSON keys are strings; each must spell a token id."""
    try:
        return {int(key): msgspec.convert(bias, float, strict=True) for key, bias in value.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise RequestError(
            f'{name} must map token ids to numbers, as in {{"42": -1.5}}; got {value!r}', param=name
        ) from error


def _plain(error: msgspec.ValidationError) -> str:
    text = str(error)
    return text[0].lower() + text[1:]


def generation_defaults(generation_config: Mapping[str, Any], source: str = "generation_config.json") -> dict[str, Any]:
    """The sampling that a checkpoint recommends, by field of SamplingParams.

    Raises RequestError naming `source` if it recommends something out of range.
    """
    found = {name: generation_config[name] for name in MODEL_DEFAULTS if generation_config.get(name) is not None}
    if found.get("top_k") == 0:  # that library's way of saying off
        found["top_k"] = -1
    if generation_config.get("do_sample") is False and "temperature" not in found:
        found = {**{k: v for k, v in found.items() if k == "repetition_penalty"}, "temperature": 0.0}
    try:
        build(found, Dialect.NATIVE)
    except RequestError as error:
        raise RequestError(f"{source}: {error.message}", param=error.param) from error
    return found
