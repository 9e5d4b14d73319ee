"""Grammar backends side by side: compiling, masks and accepted tokens in a step, memory.

    python -m bench.grammar [--backends llguidance xgrammar] [--steps 200] [--json FILE]

Vocabularies are made here: every byte, then words, numbers and pieces of JSON, up to 2,000 and 150,000 tokens. Texts
are walked at random under their masks, so every text of a batch is in a state of its own. Times are medians; the
machine should be idle. Hostile grammars are compiled in a process of their own that is stopped after --limit seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from core.interfaces.context import PluginContext
from core.interfaces.errors import RequestError
from core.interfaces.grammar import GrammarBackend, GrammarSource, Vocabulary
from core.registry.catalog import Catalog

EOS = 256


def vocabulary(size: int) -> Vocabulary:
    """Every byte, an end, and words as a tokenizer has them: with and without a blank in front, capitals, digits."""
    draw = random.Random(0)
    starts = ["", "b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w", "ch"]
    syllables = [start + vowel for start in starts for vowel in ("a", "e", "i", "o", "u", "er", "in", "on", "al")]
    pieces = ['{"', '": "', '", "', '":', '",', '"}', '"}]', "}}", "],", "[{", ": ", ", ", "true", "false", "null"]
    made = dict.fromkeys([*(bytes([byte]) for byte in range(256)), b"", *(piece.encode() for piece in pieces)])
    for number in range(min(1000, size // 10)):
        made[str(number).encode()] = None
    while len(made) < size:
        word = "".join(draw.choice(syllables) for _ in range(draw.randint(1, 4)))
        word = draw.choice(("", " ", " ")) + draw.choice((word, word, word.capitalize()))
        if draw.random() < 0.15:
            word = "".join(chr(draw.randint(0x4E00, 0x9FA5)) for _ in range(draw.randint(1, 3)))
        made[word.encode()] = None
    return Vocabulary(tuple(made), (EOS,))


def object_schema(num_properties: int, depth: int = 0) -> dict[str, Any]:
    """An object of texts, numbers, enums and lists, with objects within it."""
    kinds: list[dict[str, Any]] = [
        {"type": "string", "description": "a text"},
        {"type": "integer", "minimum": 0, "maximum": 10_000},
        {"type": "number"},
        {"enum": ["low", "medium", "high", "critical"]},
        {"type": "array", "items": {"type": "string"}, "maxItems": 8},
        {"type": "string", "maxLength": 64},
        {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        {"type": "string", "format": "date-time"},
    ]
    properties = {f"field_{i}": kinds[i % len(kinds)] for i in range(num_properties)}
    for i in range(min(3, depth) and 3):
        properties[f"part_{i}"] = object_schema(num_properties, depth - 1)
    return {
        "type": "object",
        "properties": properties,
        "required": [name for i, name in enumerate(properties) if i % 2 == 0],
        "additionalProperties": False,
    }


def grammars() -> dict[str, GrammarSource]:
    def schema(value: Any) -> GrammarSource:
        return GrammarSource("json_schema", json.dumps(value))

    nested = 'root ::= item ("," item)*\nitem ::= [a-z]+ | "(" root ")"'
    return {
        "json_object": GrammarSource("json_object"),
        "schema, 9 properties": schema(object_schema(9)),
        "schema, 120 properties in 13 objects": schema(object_schema(9, 2)),
        "schema, 500 properties": schema(object_schema(500)),
        "enum of 2,000": schema({"enum": [f"value number {i}" for i in range(2000)]}),
        "regex": GrammarSource("regex", r"[A-Z][a-z]+ [0-9]{1,3}(, [A-Z][a-z]+ [0-9]{1,3})*"),
        "EBNF, recursive": GrammarSource("ebnf", nested),
        "choice of 3": GrammarSource("choice", '["yes", "no", "perhaps"]'),
    }


def hostile() -> dict[str, GrammarSource]:
    """What a request may send to stop a server."""

    def schema(value: Any) -> GrammarSource:
        return GrammarSource("json_schema", json.dumps(value))

    deep: Any = {"type": "integer"}
    for _ in range(60):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"], "additionalProperties": False}
    wide_refs = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{(i * 7 + j) % 40}"} for j in range(8)]} for i in range(40)}
    doubling = {
        f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2, "minItems": 2} for i in range(24)
    }
    optional = {f"p{i}": {"type": "integer"} for i in range(1500)}
    return {
        "60 levels": schema(deep),
        "references among 40, without an end": schema({"$defs": wide_refs, "$ref": "#/$defs/d0"}),
        "2^24 by references": schema({"$defs": {**doubling, "d24": {"type": "null"}}, "$ref": "#/$defs/d0"}),
        "1,500 optional properties": schema({"type": "object", "properties": optional, "additionalProperties": False}),
        "maxLength 10,000": schema({"type": "string", "minLength": 9_999, "maxLength": 10_000}),
        "lists of 10,000": schema(
            {"type": "array", "items": {"type": "string", "maxLength": 10_000}, "minItems": 9_999}
        ),
        "pattern ((a*)*)*b": schema({"type": "string", "pattern": "^(((a|aa)*)*)*b$"}),
        "pattern with 2^20 states": schema({"type": "string", "pattern": "^(a|b)*a(a|b){20}$"}),
        "regex (x{1,1000}){1,1000}": GrammarSource("regex", "((a|b|c){1,1000}){1,1000}"),
        "regex [a-z]*x[a-z]{300}": GrammarSource("regex", "[a-z]*x[a-z]{300}"),
        "EBNF, ambiguous": GrammarSource("ebnf", 'root ::= root root | "a" | ""'),
        "EBNF, 2^30 by rules": GrammarSource(
            "ebnf", "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(30)) + '\nr30 ::= "a"'
        ),
        "maximum of 300 digits": schema({"type": "number", "maximum": 1e300, "minimum": 0.123456789}),
        "enum of 15,000": schema({"enum": [f"{'x' * 8}{i}" for i in range(15_000)]}),
    }


def timed(work: Callable[[], Any], repeat: int) -> float:
    """Median, ms."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def load(name: str, words: Vocabulary, **settings: Any) -> GrammarBackend:
    return Catalog.scan().load("grammar", name)(words, PluginContext(settings=settings))


def steps(backend: GrammarBackend, source: GrammarSource, batch: int, num_steps: int) -> tuple[float, float, float]:
    """Masks, accepted tokens and the worst masks of a step, ms. Texts that end begin anew."""
    draw = np.random.default_rng(0)
    grammar = backend.compile(source)
    matchers = [grammar.matcher() for _ in range(batch)]
    masks = np.zeros((batch, backend.vocabulary.mask_words), np.uint32)
    filling, accepting = [], []
    for _ in range(num_steps):
        start = time.perf_counter()
        backend.fill_masks(matchers, masks)
        filled = time.perf_counter()
        chosen = [
            int(draw.choice(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")))) for row in masks
        ]
        begun = time.perf_counter()
        for matcher, token in zip(matchers, chosen, strict=True):
            assert matcher.accept(token)
        accepting.append(time.perf_counter() - begun)
        filling.append(filled - start)
        matchers = [grammar.matcher() if matcher.terminated else matcher for matcher in matchers]
    return statistics.median(filling) * 1e3, statistics.median(accepting) * 1e3, max(filling) * 1e3


def memory_mb() -> float:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def attack(name: str, words: Vocabulary, source: GrammarSource, results: Any) -> None:
    """In a process of its own: compile, then 200 steps of one text."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    backend = load(name, words)
    before = memory_mb()
    start = time.perf_counter()
    try:
        backend.compile(source)
    except RequestError as exc:
        results.put(f"refused in {(time.perf_counter() - start) * 1e3:.0f} ms: {exc.message[:60]}")
        return
    compiled = time.perf_counter() - start
    try:
        _, _, worst = steps(backend, source, 1, 200)
    except (ValueError, AssertionError):
        results.put(f"{compiled * 1e3:.0f} ms, then nothing may come next (a limit); {memory_mb() - before:.0f} MB")
        return
    results.put(f"{compiled * 1e3:.0f} ms, worst step {worst:.1f} ms, {memory_mb() - before:.0f} MB")


def attacked(name: str, words: Vocabulary, source: GrammarSource, limit_s: float) -> str:
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=attack, args=(name, words, source, results))
    process.start()
    process.join(limit_s)
    if process.is_alive():
        process.kill()
        process.join()
        return f"NOT DONE in {limit_s:.0f} s"
    if process.exitcode:
        return f"DIED with signal {-process.exitcode}" if process.exitcode < 0 else "FAILED"
    return str(results.get())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["llguidance", "xgrammar"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[2_000, 150_000])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for a hostile grammar")
    parser.add_argument("--set", action="append", default=[], help="setting=value, for all backends")
    parser.add_argument("--only", choices=["compile", "steps", "hostile"], help="one part")
    args = parser.parse_args()
    settings = dict(item.split("=", 1) for item in args.set)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    )
    for size in args.sizes:
        words = vocabulary(size)
        backends: dict[str, GrammarBackend] = {}
        print(f"\n## {size} tokens\n")
        for name in args.backends:
            load(name, vocabulary(1000))  # imports are not its memory
            before, start = memory_mb(), time.perf_counter()
            backends[name] = load(name, words, **settings)
            print(f"{name}: ready in {time.perf_counter() - start:.2f} s, {memory_mb() - before:.0f} MB")
        if args.only in (None, "compile"):
            print(f"\n{'compile, ms':40}" + "".join(f"{name:>24}" for name in backends))
            for title, source in grammars().items():
                cells = []
                for backend in backends.values():
                    try:
                        first = timed(lambda b=backend, s=source: b.compile(s), 1)
                        usual = timed(lambda b=backend, s=source: b.compile(s), 3)
                        size_kb = backend.compile(source).num_bytes / 1e3
                        cells.append(f"{max(first, usual):9.2f} {size_kb:9.0f} kB")
                    except RequestError:
                        cells.append("refused")
                print(f"{title:40}" + "".join(f"{cell:>24}" for cell in cells))
        if args.only in (None, "steps"):
            print(f"\n{'masks + accept (worst masks), ms':40}" + "".join(f"{name:>24}" for name in backends))
            for title in ("json_object", "schema, 9 properties", "regex", "EBNF, recursive"):
                for batch in args.batches:
                    cells = []
                    for backend in backends.values():
                        fill, accept, worst = steps(backend, grammars()[title], batch, args.steps)
                        cells.append(f"{fill:.3f} + {accept:.3f} ({worst:.1f})")
                    print(f"{f'{title}, batch {batch}':40}" + "".join(f"{cell:>24}" for cell in cells))
        if args.only in (None, "hostile"):
            print("\nhostile:")
            for title, source in hostile().items():
                for name in backends:
                    print(f"{title:40}{name:>12}: {attacked(name, words, source, args.limit)}", flush=True)


if __name__ == "__main__":
    main()
