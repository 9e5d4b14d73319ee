"""What a manifest may state under `[plugin.capabilities]`: one schema per kind, read before anything is imported.

A key that is left out states nothing and rules nothing out: selection then asks the class. A value of another form than
the schema's makes the plugin unavailable. A key that the schema lacks is a warning, since newer plugins may state more
than this core knows; keys that begin with `x_` are the author's own and never looked at.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from core.interfaces.spec import StateKind

OWN_PREFIX = "x_"
Names = tuple[str, ...] | None
Numbers = tuple[int, ...] | None
Flag = bool | None


class Stated(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of every kind. priority: order where core chooses, higher goes first. hardware: names of the hardware
    plugins it runs on, None for any."""

    priority: int = 0
    hardware: Names = None


class StatedModel(Stated, frozen=True, kw_only=True):
    """state_kinds: what its layers remember. tensor_parallel: whether it can be spread over ranks."""

    state_kinds: Names = None
    tensor_parallel: Flag = None


class StatedAttention(Stated, frozen=True, kw_only=True):
    """As `AttentionCapabilities`; what is stated here spares the import of a backend that cannot serve."""

    state_kinds: Names = None
    page_sizes: Numbers = None
    head_dims: Numbers = None
    dtypes: Names = None
    kv_dtypes: Names = None
    softcap: Flag = None
    sinks: Flag = None
    tree_mask: Flag = None
    graph: Flag = None
    batch_invariant: Flag = None


class StatedQuant(Stated, frozen=True, kw_only=True):
    """formats: values of quant_method in a checkpoint's quantization_config that it reads; others spare the import.
    experts: whether it has a method for experts. tensor_parallel: whether its layers can be spread over ranks."""

    formats: Names = None
    experts: Flag = None
    dtypes: Names = None
    tensor_parallel: Flag = None


class StatedPrefixCache(Stated, frozen=True, kw_only=True):
    """state_kinds: what it can store."""

    state_kinds: Names = None


class StatedParser(Stated, frozen=True, kw_only=True):
    """structure: whether it can force a call (tool parsers)."""

    structure: Flag = None


class StatedHardware(Stated, frozen=True, kw_only=True):
    """For people: what counts is the class's `HardwareCapabilities` and its probe."""

    dtypes: Names = None
    graphs: Flag = None
    async_steps: Flag = None


class StatedMoe(Stated, frozen=True, kw_only=True):
    """formats: of `ExpertWeights` that it computes."""

    formats: Names = None
    dtypes: Names = None


class StatedOps(Stated, frozen=True, kw_only=True):
    """ops: names of the operations it offers."""

    ops: Names = None
    dtypes: Names = None


class StatedLogitProcessor(Stated, frozen=True, kw_only=True):
    """As the class variables of `LogitProcessor`."""

    keeps_order: Flag = None


class StatedSchedulePolicy(Stated, frozen=True, kw_only=True):
    """As the class variables of `SchedulePolicy`."""

    reorders: Flag = None
    plans_steps: Flag = None


class StatedCheckpoint(Stated, frozen=True, kw_only=True):
    """default: the one used when no model is given. tool_parser, reasoning_parser: plugins its answers need."""

    default: bool = False
    tool_parser: str | None = None
    reasoning_parser: str | None = None


class StatedGrammar(Stated, frozen=True, kw_only=True):
    """kinds: of grammar that it compiles."""

    kinds: Names = None


class StatedSpeculator(Stated, frozen=True, kw_only=True):
    """needs_hidden: whether it reads the model's hidden states."""

    needs_hidden: Flag = None


class StatedStore(Stated, frozen=True, kw_only=True):
    """state_kinds: of pages that it moves or keeps."""

    state_kinds: Names = None


@dataclass(frozen=True, slots=True)
class ReadCapabilities:
    """stated: the typed values; a value that could not be read is left at its default. problems: values of a wrong
    form. warnings: keys and values that this core does not know."""

    stated: Stated
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_capabilities(schema: type[Stated], raw: Mapping[str, Any]) -> ReadCapabilities:
    """Check one table key by key, so that every problem is told with its key, value and allowed form."""
    known = _fields(schema)
    values: dict[str, Any] = {}
    problems, warnings = [], []
    for key, value in raw.items():
        if key.startswith(OWN_PREFIX):
            continue
        if key not in known:
            warnings.append(_unknown(key, known))
            continue
        try:
            values[key] = msgspec.convert(value, known[key])
        except msgspec.ValidationError:
            problems.append(f"capabilities.{key} is {value!r}; it must be {allowed_form(known[key])}")
    for kind in values.get("state_kinds") or ():
        if kind not in tuple(StateKind):
            warnings.append(_unknown_kind(kind))
    return ReadCapabilities(schema(**values), tuple(problems), tuple(warnings))


def capability_fields(schema: type[Stated]) -> dict[str, str]:
    """Key -> allowed form, of one kind; for documentation and error texts."""
    return {key: allowed_form(annotation) for key, annotation in _fields(schema).items()}


def allowed_form(annotation: Any) -> str:
    """What may stand in the manifest, for people."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        of_numbers = typing.get_args(annotation)[0] is int
        return "a list of whole numbers, e.g. [16, 32]" if of_numbers else 'a list of texts, e.g. ["name"]'
    return {bool: "true or false", int: "a whole number", str: "a text"}[annotation]


@cache
def _fields(schema: type[Stated]) -> dict[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(schema)}


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    way_out = f"did you mean {close[0]!r}?" if close else f"an author's own keys begin with {OWN_PREFIX}"
    return f"capabilities.{key} is a key that this core does not know and does not read; {way_out}"


def _unknown_kind(value: str) -> str:
    close = difflib.get_close_matches(value, list(StateKind), n=1)
    way_out = f"; did you mean {str(close[0])!r}?" if close else ""
    return f"capabilities.state_kinds has {value!r}, a kind of state that this core does not know{way_out}"
