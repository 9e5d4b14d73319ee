"""Logit processors that a request names, and the fields of other servers that stand for one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from core.interfaces.errors import RequestError
from core.interfaces.params import MAX_PROCESSORS, ProcessorParams, SamplingParams

NAMED = "logit_processors"
# Field -> (processor that it stands for, argument that takes its value).
SHORT: Mapping[str, tuple[str, str]] = {
    "thinking_token_budget": ("thinking_budget", "budget"),
    "max_thinking_tokens": ("thinking_budget", "budget"),
}
FIELDS = (NAMED, *SHORT)
_KEYS = ("name", "arguments")


def asked_processors(given: Mapping[str, Any]) -> tuple[ProcessorParams, ...]:
    """What `given` asks for by any of FIELDS, those that are named first; other fields are not looked at. Raises
    RequestError for values of a wrong form. Which names are enabled, and what arguments they take, the engine knows."""
    made = _named(given.get(NAMED))
    short = [name for name in SHORT if given.get(name) is not None]
    for name in short:
        processor, argument = SHORT[name]
        if len(short) > 1 or any(params.name.rpartition(":")[2] == processor for params in made):
            other = short[0] if len(short) > 1 else NAMED
            raise RequestError(
                f"{other} and {short[-1]} both ask for the logit processor {processor!r}",
                param=short[-1],
                hint="leave one of them out",
            )
        made.append(ProcessorParams(name=processor, arguments=_text({argument: given[name]}, name), param=name))
    return tuple(made)


def with_processors(sampling: SamplingParams, given: Mapping[str, Any]) -> SamplingParams:
    """`sampling`, with the processors that `given` asks for. Raises RequestError."""
    processors = asked_processors(given)
    return msgspec.structs.replace(sampling, processors=processors) if processors else sampling


def _named(value: Any) -> list[ProcessorParams]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise RequestError(
            f'{NAMED} must be a list of objects, as in [{{"name": "x", "arguments": {{}}}}]', param=NAMED
        )
    if len(value) > MAX_PROCESSORS:
        raise RequestError(f"{NAMED} lists {len(value)}; it may list at most {MAX_PROCESSORS}", param=NAMED)
    return [_one(entry, f"{NAMED}[{index}]") for index, entry in enumerate(value)]


def _one(entry: Any, where: str) -> ProcessorParams:
    if isinstance(entry, ProcessorParams):  # from Python
        return entry
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping):
        raise RequestError(f"{where} must be an object with name and arguments, or a name", param=where)
    unknown = next((key for key in entry if key not in _KEYS), None)
    if unknown is not None:
        raise RequestError(f"{where} has {unknown!r}, which is none of {', '.join(_KEYS)}", param=f"{where}.{unknown}")
    name, arguments = entry.get("name"), entry.get("arguments")
    if not isinstance(name, str) or not name:
        raise RequestError(f"{where}.name must be a text that is not empty", param=f"{where}.name")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise RequestError(f"{where}.arguments must be an object", param=f"{where}.arguments")
    return ProcessorParams(name=name, arguments=_text(dict(arguments or {}), f"{where}.arguments"), param=where)


def _text(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{where} cannot be written as JSON: {error}", param=where) from error
