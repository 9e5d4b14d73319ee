"""Structures (core.interfaces.grammar.Structure) and lists of choices as users write them: checked, with the place of
what is wrong.

Besides the tree itself these forms are taken: {"type": "structural_tag", "format": TREE}, and the older
{"structures": [{"begin": TEXT, "schema": SCHEMA, "end": TEXT}, ...], "triggers": [TEXT, ...]}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.interfaces.errors import RequestError
from core.interfaces.grammar import Structure

MAX_DEPTH = 64
MAX_NODES = 10_000
MAX_TEXT = 1 << 20


def structure_of(value: Any) -> Structure:
    """A checked tree of plain dicts, defaults filled in. `value`: a tree or one of the forms above, or its JSON text.

    Raises RequestError that names the place ("$.tags[1].begin").
    """
    if isinstance(value, str):
        value = parsed_json(value, "structural tag")
    if not isinstance(value, Mapping):
        raise RequestError(
            f"$: a structural tag is an object with a `type`, not {_shown(value)}", param="structural_tag"
        )
    if "structures" in value:
        value, path = _from_legacy(value), "$"
    elif "format" in value:
        if value.get("type", "structural_tag") != "structural_tag":
            raise _wrong("$.type", value["type"], '"structural_tag" where there is a `format`')
        value, path = value["format"], "$.format"
    else:
        path = "$"
    return _Check().node(value, path, 0)


def choices_of(text: str) -> tuple[str, ...]:
    """The choices of a JSON list of texts, without repetitions. Raises RequestError."""
    choices = parsed_json(text, "list of choices")
    if not isinstance(choices, list) or not choices:
        raise RequestError("$: choices must be a list of at least one text", param="choice")
    for index, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice:
            raise RequestError(f"$[{index}]: {_shown(choice)} is no text of at least one character", param="choice")
        no_nul(choice, f"$[{index}]")
    return tuple(dict.fromkeys(choices))


def parsed_json(text: str, what: str, max_bytes: int = MAX_TEXT) -> Any:
    """`text` as JSON. Raises RequestError: no JSON, NaN, too large or nested too deep."""
    if len(text) > max_bytes or len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise RequestError(f"the {what} has {len(text)} characters; the limit is {max_bytes} bytes")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise RequestError(f"the {what} is no JSON: {str(exc) or type(exc).__name__}") from None


def no_nul(text: str, path: str) -> None:
    """Refuse NUL characters and lone surrogates, which grammar libraries cut texts at or fail on."""
    if "\0" in text:
        raise RequestError(f"{path}: NUL characters are not supported")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{path}: the text has half of a surrogate pair, which no UTF-8 text has") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _from_legacy(value: Mapping[str, Any]) -> Structure:
    structures, triggers = value["structures"], value.get("triggers")
    if not isinstance(structures, list):
        raise _wrong("$.structures", structures, "a list of objects with `begin`, `schema` and `end`")
    tags = []
    for index, item in enumerate(structures):
        path = f"$.structures[{index}]"
        if not isinstance(item, Mapping):
            raise _wrong(path, item, "an object with `begin`, `schema` and `end`")
        for key in ("begin", "schema", "end"):
            if key not in item:
                raise RequestError(f"{path}: `{key}` is missing", param="structural_tag")
        content = {"type": "json_schema", "json_schema": item["schema"]}
        tags.append({"type": "tag", "begin": item["begin"], "content": content, "end": item["end"]})
    flags = {key: value[key] for key in ("at_least_one", "stop_after_first") if key in value}
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags, **flags}


@dataclass(slots=True)
class _Check:
    """Walks a tree once and builds its checked copy."""

    num_nodes: int = 0

    def node(self, value: Any, path: str, depth: int) -> dict[str, Any]:
        self.num_nodes += 1
        if depth > MAX_DEPTH or self.num_nodes > MAX_NODES:
            raise RequestError(f"{path}: the structure is too large; limits: {MAX_DEPTH} levels, {MAX_NODES} nodes")
        if not isinstance(value, Mapping):
            raise _wrong(path, value, "an object with a `type`")
        kind = value.get("type")
        if not isinstance(kind, str) or kind not in _FIELDS:
            raise _wrong(f"{path}.type", kind, f"one of {', '.join(_FIELDS)}")
        fields = _FIELDS[kind]
        for key in value:
            if key != "type" and key not in fields:
                raise RequestError(
                    f"{path}.{key}: not supported for {kind!r}; its fields: {', '.join(fields) or 'none'}",
                    param="structural_tag",
                )
        made: dict[str, Any] = {"type": kind}
        for key, (check, default) in fields.items():
            if key not in value and default is None:
                raise RequestError(f"{path}: `{key}` is missing", param="structural_tag")
            made[key] = check(self, value.get(key, default), f"{path}.{key}", depth)
        if kind == "triggered_tags":
            _check_triggers(made, path)
        return made

    def text(self, value: Any, path: str, depth: int) -> str:
        if not isinstance(value, str):
            raise _wrong(path, value, "a text")
        no_nul(value, path)
        return value

    def flag(self, value: Any, path: str, depth: int) -> bool:
        if not isinstance(value, bool):
            raise _wrong(path, value, "true or false")
        return value

    def schema(self, value: Any, path: str, depth: int) -> Any:
        if not isinstance(value, bool | Mapping):
            raise _wrong(path, value, "a JSON schema")
        return value

    def texts(self, value: Any, path: str, depth: int) -> list[str]:
        if not isinstance(value, list) or not value:
            raise _wrong(path, value, "a list of at least one text")
        for index, item in enumerate(value):
            if not self.text(item, f"{path}[{index}]", depth):
                raise _wrong(f"{path}[{index}]", item, "a text of at least one character")
        return list(dict.fromkeys(value))

    def nodes(self, value: Any, path: str, depth: int) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not value:
            raise _wrong(path, value, "a list of at least one structure")
        return [self.node(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]

    def tags(self, value: Any, path: str, depth: int) -> list[dict[str, Any]]:
        tags = self.nodes(value, path, depth)
        for index, tag in enumerate(tags):
            if tag["type"] != "tag":
                raise _wrong(f"{path}[{index}].type", tag["type"], '"tag"')
        return tags

    def child(self, value: Any, path: str, depth: int) -> dict[str, Any]:
        return self.node(value, path, depth + 1)


def _check_triggers(made: Mapping[str, Any], path: str) -> None:
    for index, tag in enumerate(made["tags"]):
        fitting = [trigger for trigger in made["triggers"] if tag["begin"].startswith(trigger)]
        if len(fitting) != 1:
            raise RequestError(
                f"{path}.tags[{index}].begin: {tag['begin']!r} must begin with exactly one of the triggers "
                f"{made['triggers']}, not {len(fitting)}",
                param="structural_tag",
            )
    for index, trigger in enumerate(made["triggers"]):
        if not any(tag["begin"].startswith(trigger) for tag in made["tags"]):
            raise RequestError(f"{path}.triggers[{index}]: no tag begins with {trigger!r}", param="structural_tag")
        if any(other != trigger and other in trigger for other in made["triggers"]):
            raise RequestError(
                f"{path}.triggers[{index}]: {trigger!r} contains another trigger", param="structural_tag"
            )


_Field = tuple[Callable[[_Check, Any, str, int], Any], Any]
_FLAGS: dict[str, _Field] = {"at_least_one": (_Check.flag, False), "stop_after_first": (_Check.flag, False)}
# Of each type: field -> (check, default, None where it must be given).
_FIELDS: dict[str, dict[str, _Field]] = {
    "const_string": {"value": (_Check.text, None)},
    "json_schema": {"json_schema": (_Check.schema, None)},
    "regex": {"pattern": (_Check.text, None)},
    "grammar": {"grammar": (_Check.text, None)},
    "any_text": {},
    "sequence": {"elements": (_Check.nodes, None)},
    "or": {"elements": (_Check.nodes, None)},
    "tag": {"begin": (_Check.text, None), "content": (_Check.child, None), "end": (_Check.text, None)},
    "triggered_tags": {"triggers": (_Check.texts, None), "tags": (_Check.tags, None), **_FLAGS},
    "tags_with_separator": {"tags": (_Check.tags, None), "separator": (_Check.text, None), **_FLAGS},
}


def _wrong(path: str, value: Any, wanted: str) -> RequestError:
    return RequestError(f"{path}: must be {wanted}, not {_shown(value)}", param="structural_tag")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
