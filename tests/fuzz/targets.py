"""Functions of any bytes that may raise what users are told, and nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import cache
from typing import Any

from pydantic import ValidationError

from core.frontend.template import ChatTemplate
from core.interfaces.errors import CheckpointError, RequestError
from core.interfaces.parsers import ParserStream
from core.parsing.ebnf import is_recursive, parse_ebnf
from core.parsing.regexes import whole_text
from core.parsing.schema_rules import KEYWORDS, SchemaRules, checked_schema, subschemas
from core.parsing.structure_tree import structure_of
from core.registry.catalog import Catalog
from core.registry.context import plugin_context
from core.server import bodies
from core.server.request_log import masked
from core.server.schemas import ChatBody, CompletionBody, GenerateBody, TokenizeBody
from core.testing.contracts.tool_parser import TOOLS
from core.testing.contracts.tool_parser_streams import parse

CHAT = [{"role": "user", "content": "Hi", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1]}}}]}]
CONTENTS = "{% for m in messages %}{{ m.role }}:{{ m.content|trim }}{{ m|tojson }}{% endfor %}{{ extra }}"


def request_body(raw: bytes) -> None:
    """Any bytes as a request's body: read, or refused with a message that fits into an error."""
    for model in (ChatBody, CompletionBody, GenerateBody, TokenizeBody):
        try:
            model.model_validate_json(raw, strict=True)
        except ValidationError as error:
            told = bodies._named(error, raw)
            assert isinstance(told, RequestError)
            assert told.message
            json.dumps(told.message)


def template(raw: bytes) -> None:
    """Any text as a checkpoint's chat template."""
    with contextlib.suppress(CheckpointError, RequestError):
        ChatTemplate({"default": raw.decode(errors="replace")}, {}).render(CHAT)


def template_input(raw: bytes) -> None:
    """Any JSON as what a request gives to a template."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = raw.decode(errors="surrogateescape")
    with contextlib.suppress(RequestError):
        ChatTemplate({"default": CONTENTS}, {}).render([{"role": "user", "content": value}], variables={"extra": value})


def logged(raw: bytes) -> None:
    """Any JSON in the request log: no value of a secret's name is left."""
    try:
        body = {"api_key": json.loads(raw), "kept": json.loads(raw)}
        shown = masked(body)
    except (ValueError, RecursionError):
        return
    assert shown["api_key"] == "***"


def ebnf(raw: bytes) -> None:
    """Any text as a grammar's rules."""
    with contextlib.suppress(RequestError):
        is_recursive(parse_ebnf(raw.decode(errors="surrogateescape")))


def expression(raw: bytes) -> None:
    """Any text as a regular expression."""
    with contextlib.suppress(RequestError):
        whole_text(raw.decode(errors="surrogateescape"))


def schema(raw: bytes) -> None:
    """Any text as a JSON schema, for a backend that takes every keyword."""
    rules = SchemaRules("fuzz", KEYWORDS)
    with contextlib.suppress(RequestError):
        list(subschemas(checked_schema(raw.decode(errors="surrogateescape"), rules)))


def structure(raw: bytes) -> None:
    """Any text as a structural tag."""
    with contextlib.suppress(RequestError):
        structure_of(raw.decode(errors="surrogateescape"))


def tool_parser(raw: bytes) -> None:
    """Any text through a tool parser, the first byte says which, the second how the text is cut."""
    _same_however_cut("tool_parsers", raw, lambda parser: parser.stream(TOOLS))


def reasoning_parser(raw: bytes) -> None:
    """Any text through a reasoning parser, the first byte says which, the second how the text is cut."""
    inside = len(raw) > 1 and bool(raw[1] & 1)
    _same_however_cut("reasoning_parsers", raw, lambda parser: parser.stream(inside))


def _same_however_cut(kind: str, raw: bytes, stream: Callable[[Any], ParserStream]) -> None:
    if len(raw) < 2:
        return
    parsers = _parsers(kind)
    parser = parsers[raw[0] % len(parsers)]
    text = raw[2:].decode(errors="replace")
    size = 1 + raw[1] % 7
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    whole, cut = parse(stream(parser), [text]), parse(stream(parser), pieces)
    assert whole == cut, f"{type(parser).__module__}: {whole} is not {cut}"
    if not whole.calls and kind == "tool_parsers":
        assert whole.content == text


@cache
def _parsers(kind: str) -> list[Any]:
    catalog = Catalog.scan()
    return [catalog.load(kind, record.name)(plugin_context(record, {})) for record in catalog.of_kind(kind)]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "request_body": request_body, "template": template, "template_input": template_input, "logged": logged,
    "ebnf": ebnf, "expression": expression, "schema": schema, "structure": structure, "tool_parser": tool_parser,
    "reasoning_parser": reasoning_parser,
}  # fmt: skip
