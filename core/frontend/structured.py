"""What a text must fit, from the fields that users of several servers type. No two of them may be given together."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from core.interfaces.errors import RequestError
from core.interfaces.params import GrammarParams, SamplingParams

# Field -> kind of grammar. Of those without one the value says it.
FIELDS: Mapping[str, str] = {
    "response_format": "",
    "structured_outputs": "",
    "json_schema": "json_schema",
    "guided_json": "json_schema",
    "regex": "regex",
    "guided_regex": "regex",
    "ebnf": "ebnf",
    "guided_grammar": "ebnf",
    "guided_choice": "choice",
    "structural_tag": "structural_tag",
}
_OUTPUTS = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "ebnf",
    "json_object": "json_object",
    "structural_tag": "structural_tag",
}
_FORMATS = ("text", "json_object", "json_schema", "structural_tag")
_ANY = "$$ANY$$"  # as a JSON schema: any JSON value


@dataclass(frozen=True, slots=True)
class Named:
    """A structure's JSON schema and the request's field that it came from."""

    schema: Any
    field: str


def asked_grammar(given: Mapping[str, Any]) -> GrammarParams | None:
    """The grammar that `given` asks for by any of FIELDS; other fields are not looked at, and an empty text counts as
    not given. Raises RequestError for two at once, and for values of a wrong form; what is in a schema or an expression
    is the grammar backend's to judge."""
    named = [name for name in FIELDS if given.get(name) is not None and given[name] != ""]
    asked = [(name, found) for name in named if (found := _grammar(name, given[name])) is not None]
    if len(asked) > 1:
        first, second = asked[0][0], asked[1][0]
        raise RequestError(f"{first} and {second} cannot be given together", param=second, hint="leave one of them out")
    return asked[0][1] if asked else None


def with_grammar(sampling: SamplingParams, given: Mapping[str, Any]) -> SamplingParams:
    """`sampling`, with the grammar that `given` asks for. Raises RequestError."""
    grammar = asked_grammar(given)
    return sampling if grammar is None else msgspec.structs.replace(sampling, grammar=grammar)


def structure_grammar(structure: Any, param: str, named: Sequence[Named] = ()) -> GrammarParams:
    """A structure as a grammar. named: where its JSON schemas came from, for errors."""
    fields = {_key(entry.schema): entry.field for entry in reversed(named)}
    schemas = tuple(fields.get(_key(schema), param) for schema in schemas_of(structure))
    return GrammarParams(kind="structural_tag", text=_text(structure, param), param=param, schemas=schemas)


def as_structure(grammar: GrammarParams) -> Any:
    """Any grammar as a node of a structure, to be combined with others."""
    match grammar.kind:
        case "structural_tag":
            return json.loads(grammar.text)
        case "json_schema":
            return {"type": "json_schema", "json_schema": json.loads(grammar.text)}
        case "json_object":
            return {"type": "json_schema", "json_schema": {"type": "object"}}
        case "regex":
            return {"type": "regex", "pattern": grammar.text}
        case "choice":
            return {"type": "or", "elements": [{"type": "const_string", "value": t} for t in json.loads(grammar.text)]}
        case _:
            return {"type": "grammar", "grammar": grammar.text}


def schemas_of(structure: Any) -> Iterator[Any]:
    """JSON schemas in a structure, each that differs from those before it, in the order of a walk."""
    seen: set[str] = set()
    for schema in _walk(structure):
        if (key := _key(schema)) not in seen:
            seen.add(key)
            yield schema


def _walk(node: Any) -> Iterator[Any]:
    if isinstance(node, list):
        for item in node:
            yield from _walk(item)
    elif isinstance(node, dict):
        if node.get("type") == "json_schema" and "json_schema" in node:
            yield node["json_schema"]
            return
        for value in node.values():
            yield from _walk(value)


def _key(schema: Any) -> str:
    return json.dumps(schema, sort_keys=True)


def _grammar(name: str, value: Any) -> GrammarParams | None:
    if name == "response_format":
        return _response_format(value)
    if name == "structured_outputs":
        return _structured_outputs(value)
    return _of_kind(FIELDS[name], value, name)


def _response_format(value: Any) -> GrammarParams | None:
    where = "response_format"
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind in ("text", "json_object", "json_schema"):
        _only(where, value, ("type", "json_schema") if kind == "json_schema" else ("type",))
    if kind == "text":
        return None
    if kind == "json_object":
        return GrammarParams(kind="json_object", param=where)
    if kind == "structural_tag":
        return _of_kind("structural_tag", value, where)
    if kind != "json_schema":
        raise RequestError(f"{where}.type is {kind!r}; it must be one of {', '.join(_FORMATS)}", param=f"{where}.type")
    inner = value.get("json_schema")
    if not isinstance(inner, Mapping):
        raise RequestError(f"{where}.json_schema must be an object with name and schema", param=f"{where}.json_schema")
    _only(f"{where}.json_schema", inner, ("name", "description", "schema", "strict"))
    schema = inner.get("schema")
    if schema is None:
        raise RequestError(f"{where}.json_schema.schema is missing", param=f"{where}.json_schema.schema")
    return _of_kind("json_schema", schema, f"{where}.json_schema.schema")


def _structured_outputs(value: Any) -> GrammarParams | None:
    where = "structured_outputs"
    if not isinstance(value, Mapping):
        raise RequestError(f"{where} must be an object with one of {', '.join(_OUTPUTS)}", param=where)
    _only(where, value, (*_OUTPUTS, "disable_fallback"))
    given = [name for name in _OUTPUTS if value.get(name) is not None and value[name] is not False]
    if len(given) > 1:
        raise RequestError(
            f"{where}.{given[0]} and {where}.{given[1]} cannot be given together", param=f"{where}.{given[1]}"
        )
    if not given:
        raise RequestError(f"{where} must have one of {', '.join(_OUTPUTS)}", param=where)
    return _of_kind(_OUTPUTS[given[0]], value[given[0]], f"{where}.{given[0]}")


def _of_kind(kind: str, value: Any, where: str) -> GrammarParams:
    match kind:
        case "json_object":
            return GrammarParams(kind="json_object", param=where)
        case "json_schema":
            made = getattr(value, "model_json_schema", None)  # a pydantic model, from Python
            return GrammarParams(kind=kind, text=_schema(made() if callable(made) else value, where), param=where)
        case "choice":
            fine = isinstance(value, list | tuple) and value and all(isinstance(item, str) and item for item in value)
            if not fine:
                raise RequestError(f"{where} must be a list of texts that are not empty", param=where)
            return GrammarParams(kind=kind, text=_text(list(value), where), param=where)
        case "structural_tag":
            return structure_grammar(_structure(value, where), where)
    if not isinstance(value, str) or not value:
        raise RequestError(f"{where} must be a text that is not empty", param=where)
    return GrammarParams(kind=kind, text=value, param=where)


def _schema(value: Any, where: str) -> str:
    """A JSON schema as text; the order of its members is kept, as that of the answer's follows it."""
    if value == _ANY:
        return "{}"
    opened = _opened(value, where) if isinstance(value, str) else value
    if not isinstance(opened, Mapping | bool):
        raise RequestError(f"{where} must be a JSON schema: an object, or its text", param=where)
    return value if isinstance(value, str) else _text(opened, where)


def _structure(value: Any, where: str) -> Any:
    """A structure in any of its spellings: bare, in {"type": "structural_tag", "format": ...}, or the older one
    with "structures" and "triggers"."""
    opened = _opened(value, where) if isinstance(value, str) else value
    if not isinstance(opened, Mapping):
        raise RequestError(f"{where} must be an object", param=where)
    if "structures" in opened:
        return _triggered(opened, where)
    if opened.get("type") == "structural_tag":
        inner = opened.get("format")
        if not isinstance(inner, Mapping):
            raise RequestError(f"{where}.format is missing; it says what the text is made of", param=f"{where}.format")
        return dict(inner)
    return dict(opened)


def _triggered(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    triggers, structures = value.get("triggers"), value["structures"]
    if not isinstance(structures, Sequence) or not structures or isinstance(structures, str):
        raise RequestError(f"{where}.structures must be a list of objects", param=f"{where}.structures")
    if not isinstance(triggers, Sequence) or not triggers or isinstance(triggers, str):
        raise RequestError(f"{where}.triggers must be a list of texts", param=f"{where}.triggers")
    tags = []
    for index, entry in enumerate(structures):
        at = f"{where}.structures[{index}]"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("begin"), str):
            raise RequestError(f"{at}.begin must be a text", param=f"{at}.begin")
        if not isinstance(entry.get("end"), str):
            raise RequestError(f"{at}.end must be a text", param=f"{at}.end")
        content = {"type": "json_schema", "json_schema": entry.get("schema") or {}}
        tags.append({"type": "tag", "begin": entry["begin"], "content": content, "end": entry["end"]})
    return {
        "type": "triggered_tags",
        "triggers": list(triggers),
        "tags": tags,
        "at_least_one": _switch(value, "at_least_one", where),
        "stop_after_first": _switch(value, "stop_after_first", where),
    }


def _switch(value: Mapping[str, Any], name: str, where: str) -> bool:
    on = value.get(name)
    if not isinstance(on, bool | None):
        raise RequestError(f"{where}.{name} must be true or false", param=f"{where}.{name}")
    return bool(on)


def _only(where: str, value: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises RequestError for a member that would change the form and that nobody reads."""
    for name, given in value.items():
        if name not in known and given not in (None, False, "", [], {}):
            raise RequestError(
                f"{where}.{name} is not supported",
                param=f"{where}.{name}",
                code="unsupported_parameter",
                hint=f"there are {', '.join(known)}",
            )


def _opened(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} is no JSON: {error}", param=where) from error


def _text(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{where} cannot be written as JSON: {error}", param=where) from error
