"""LlguidanceGrammar: compiles every kind of grammar with llguidance."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark

from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError, RequestError
from core.interfaces.grammar import (
    CompiledGrammar,
    GrammarBackend,
    GrammarKind,
    GrammarMatcher,
    GrammarSource,
    TokenMask,
    Vocabulary,
)
from core.parsing.ebnf import Rules, parse_ebnf
from core.parsing.regexes import whole_text
from core.parsing.schema_rules import Schema, checked_schema, subschemas
from core.parsing.structure_tree import choices_of, parsed_json, structure_of
from plugin_llguidance.lark import Part, Writer, escaped
from plugin_llguidance.matcher import LlguidanceCompiled, LlguidanceMatcher
from plugin_llguidance.schemas import json_options, plain, schema_rules
from plugin_llguidance.settings import Options

# Below this many texts one thread is faster than handing them out.
FEW_MATCHERS = 4
MAX_FORCED = 64  # tokens
MAX_PLACES = 200  # schemas tried one by one to say which one is refused


class LlguidanceGrammar(GrammarBackend):
    """Compiling takes well under a millisecond and holds no lock of Python's; masks are computed in each step."""

    kinds: ClassVar[frozenset[GrammarKind]] = frozenset(
        {"json_schema", "json_object", "regex", "ebnf", "choice", "structural_tag"}
    )

    def __init__(self, vocabulary: Vocabulary, ctx: PluginContext) -> None:
        super().__init__(vocabulary, ctx)
        self._options = ctx.settings if isinstance(ctx.settings, Options) else Options(**ctx.settings)
        if not vocabulary.eos_token_ids:
            raise ConfigError("no token of the vocabulary ends a text", hint="constrained texts need an end token")
        self._eos_token_ids = frozenset(vocabulary.eos_token_ids)
        self._tokenizer = LLTokenizer(
            _Tokenizer(vocabulary), n_vocab=len(vocabulary.tokens), eos_token=list(vocabulary.eos_token_ids)
        )
        self._limits = LLParserLimits(
            initial_lexer_fuel=self._options.compile_fuel,
            step_lexer_fuel=self._options.step_fuel,
            max_items_in_row=self._options.row_items,
            step_max_items=self._options.step_items,
            max_lexer_states=self._options.max_lexer_states,
            max_grammar_size=self._options.max_grammar_symbols,
            verbose_errors=False,
        )
        self._rules = schema_rules(self._options)
        self._json = json_options(self._options)
        self._threads = self._options.threads or min(8, len(os.sched_getaffinity(0)))
        self._executor = LLExecutor(self._threads)
        self._mask_words = vocabulary.mask_words

    def compile(self, source: GrammarSource) -> CompiledGrammar:
        schemas: list[tuple[str, Schema]] = []
        text = self._grammar(source, schemas)
        state = LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
        told = _failure(state) or self._failure_at_once(state)
        if told:
            place = next(filter(None, (self._place(path, schema) for path, schema in schemas)), None)
            raise RequestError(place or f"$: the {_WHAT[source.kind]} cannot be used: {told}")
        # Measured (bench/grammar.py): some 100 bytes for each of the grammar's, besides what comes with use.
        return LlguidanceCompiled(state, len(self.vocabulary.tokens), self._eos_token_ids, 20_000 + 100 * len(text))

    def fill_masks(self, matchers: Sequence[GrammarMatcher], masks: TokenMask) -> None:
        if len(matchers) < FEW_MATCHERS or self._threads == 1 or not masks.flags.c_contiguous:
            super().fill_masks(matchers, masks)
            return
        states = []
        for row, matcher in enumerate(matchers):
            assert isinstance(matcher, LlguidanceMatcher)
            if matcher.terminated:
                masks[row] = 0
            else:
                states.append((matcher.state, row))
        self._executor.unsafe_compute_mask_ptr(states, masks.ctypes.data, self._mask_words * 4, len(masks))
        for state, row in states:
            if state.is_error():
                masks[row] = 0

    def _failure_at_once(self, beginning: LLMatcher) -> str:
        """Which limit is reached before the first choice, as an object of too many optional properties does. By masks:
        the library's own `compute_ff_bytes` holds Python's lock, for seconds where a million bytes are forced."""
        state = beginning.deep_copy()
        for _ in range(MAX_FORCED):
            mask = np.frombuffer(state.compute_bitmask(), np.uint8)
            if told := _failure(state):
                return told
            token = self._only_way(np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist())
            if token is None:
                break
            state.try_consume_tokens([token])
        return _failure(state)

    def _only_way(self, allowed: Sequence[int]) -> int | None:
        """The longest of these tokens if it begins with each of them; None: there is a choice, or an end."""
        tokens = self.vocabulary.tokens
        if not 0 < len(allowed) <= MAX_FORCED:
            return None
        longest = max(allowed, key=lambda token: len(tokens[token]))
        if all(tokens[token] and tokens[longest].startswith(tokens[token]) for token in allowed):
            return longest
        return None

    def _place(self, path: str, root: Schema) -> str | None:
        """Which part of a schema the library refuses, and why: the innermost that it refuses by itself."""
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        for here, schema in islice(subschemas(root, path), MAX_PLACES):
            text = Writer.of_schema({**schema, **shared, "x-guidance": self._json})
            state = LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
            if told := _failure(state):
                keyword = next((key for key in ("pattern", "oneOf", "allOf", "multipleOf") if key in schema), None)
                return f"{here}.{keyword}: {told}" if keyword else f"{here}: {told}"
        return None

    def _grammar(self, source: GrammarSource, schemas: list[tuple[str, Schema]]) -> str:
        """In the library's language. Schemas in it are put into `schemas` with their paths."""

        def schema(value: Any, path: str) -> dict[str, Any]:
            schemas.append((path, made := self._schema(value, path)))
            return made

        writer = Writer(schema, self._expression, self._ebnf)
        match source.kind:
            case "json_object":
                part = writer.node({"type": "json_schema", "json_schema": {"type": "object"}})
            case "json_schema":
                part = writer.schema(parsed_json(source.text, "JSON schema", self._options.max_schema_bytes), "$")
            case "regex":
                part = Part(f"/{self._expression(source.text, '$')}/", regular=True)
            case "ebnf":
                part = writer.ebnf(self._ebnf(source.text))
            case "choice":
                part = Part(" | ".join(f"/{escaped(choice)}/" for choice in choices_of(source.text)), regular=True)
            case "structural_tag":
                part = writer.node(structure_of(source.text))
            case _:
                raise RequestError(f"grammars of kind {source.kind!r} are not supported by llguidance")
        return LLMatcher.grammar_from_lark(writer.grammar(part))

    def _schema(self, schema: Any, path: str) -> dict[str, Any]:
        """With the library's options."""
        checked = checked_schema(schema, self._rules, path)
        if checked is False:
            raise RequestError(f"{path}: nothing fits the schema `false`")
        return {**(plain(checked) if isinstance(checked, Mapping) else {}), "x-guidance": self._json}

    def _expression(self, pattern: str, path: str) -> str:
        return regex_to_lark(whole_text(pattern, path=path, max_repeat=self._options.max_repeat), "dw")

    def _ebnf(self, text: str) -> Rules:
        return parse_ebnf(text, max_repeat=self._options.max_repeat)


class _Tokenizer:
    """The vocabulary as the library wants it. Ids without text get a name that no text has."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        ends = frozenset(vocabulary.eos_token_ids)
        special = [i for i, token in enumerate(vocabulary.tokens) if not token or i in ends]
        self.tokens = list(vocabulary.tokens)
        for i in special:
            self.tokens[i] = b"\xff<|%d|>" % i  # \xff marks what is not text
        self.special_token_ids = special
        self.eos_token_id = vocabulary.eos_token_ids[0]
        self._first = {token: i for i, token in reversed(list(enumerate(self.tokens))) if len(token) == 1}

    def __call__(self, text: bytes | str) -> list[int]:
        """Some way to cut a text; only asked for tokens that are forced, which are not used."""
        raw = text.encode() if isinstance(text, str) else text
        return [self._first[raw[i : i + 1]] for i in range(len(raw)) if raw[i : i + 1] in self._first]


_WHAT = {
    "json_schema": "JSON schema",
    "json_object": "JSON object grammar",
    "regex": "regular expression",
    "ebnf": "EBNF grammar",
    "choice": "list of choices",
    "structural_tag": "structural tag",
}


def _failure(state: LLMatcher) -> str:
    """What the library says is wrong, without its state and the grammar that it prints behind; empty if nothing is."""
    if not state.is_error():
        return ""
    told = re.split("<state>|<grammar>|<non-verbose/>", state.get_error())[0].strip()
    told = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", told)
    told = re.split(r"\n *\d+ \| ", told)[0]  # lines of the grammar that was made, which nobody wrote
    return " ".join(told.split())[:400] or "it is too large"
