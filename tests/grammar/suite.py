"""The published cases of JSON Schema, draft 2020-12, against a grammar backend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.interfaces.context import PluginContext
from core.interfaces.errors import RequestError
from core.interfaces.grammar import CompiledGrammar, GrammarBackend, GrammarSource, Vocabulary
from core.registry.catalog import Catalog

FOLDER = Path(__file__).parent / "json_schema_suite"
EOS = 256
BYTES = Vocabulary((*(bytes([byte]) for byte in range(256)), b""), (EOS,))


@dataclass(frozen=True, slots=True)
class Case:
    """A schema with instances, each with whether it is valid."""

    file: str
    title: str
    schema: Any
    instances: tuple[tuple[Any, bool], ...]


@dataclass(slots=True)
class Outcome:
    """What a backend makes of a case: refused, with the reason, or what of its instances it takes."""

    case: Case
    refused: str = ""
    too_lax: list[str] = field(default_factory=list)
    too_strict: list[str] = field(default_factory=list)
    num_valid: int = 0


def cases() -> Iterator[Case]:
    for path in sorted(FOLDER.glob("*.json")):
        for group in json.loads(path.read_text()):
            instances = tuple((test["data"], test["valid"]) for test in group["tests"])
            yield Case(path.stem, group["description"], group["schema"], instances)


def backend(name: str, vocabulary: Vocabulary = BYTES, **settings: Any) -> GrammarBackend:
    made = Catalog.scan().load("grammar", name)(vocabulary, PluginContext(settings=settings))
    assert isinstance(made, GrammarBackend)
    return made


def run(case: Case, made: GrammarBackend) -> Outcome:
    outcome = Outcome(case)
    try:
        grammar = made.compile(GrammarSource("json_schema", json.dumps(case.schema)))
    except RequestError as exc:
        outcome.refused = exc.message
        return outcome
    for instance, valid in case.instances:
        taken = [text for text in texts(instance) if takes(grammar, text)]
        outcome.num_valid += valid
        if valid and not taken:
            outcome.too_strict.append(json.dumps(instance))
        if not valid:
            outcome.too_lax += taken
    return outcome


def takes(grammar: CompiledGrammar, text: str) -> bool:
    matcher = grammar.matcher()
    return all(matcher.accept(byte) for byte in text.encode("utf-8", "surrogatepass")) and matcher.accept(EOS)


def texts(instance: Any) -> Iterator[str]:
    """Ways to write a value: blanks or none, characters or escapes, names in other orders, whole numbers as such."""
    for separators in ((", ", ": "), (",", ":")):
        for ascii_only in (False, True):
            yield json.dumps(instance, separators=separators, ensure_ascii=ascii_only)
    yield json.dumps(instance, sort_keys=True)
    if isinstance(instance, dict):
        yield json.dumps(dict(reversed(instance.items())))
        if instance:
            escaped = {name: "".join(f"\\u{ord(char):04x}" for char in name) for name in instance if name.isascii()}
            pairs = (f'"{escaped.get(name, name)}":{json.dumps(value)}' for name, value in instance.items())
            yield f"{{{','.join(pairs)}}}"
    if isinstance(instance, float) and instance.is_integer() and abs(instance) < 1e15:
        yield str(int(instance))
