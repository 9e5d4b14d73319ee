"""XgrammarGrammar: compiles every kind of grammar with XGrammar."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from xgrammar import BatchGrammarMatcher, Grammar, GrammarCompiler, TokenizerInfo, VocabType

from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError, RequestError
from core.interfaces.grammar import (
    CompiledGrammar,
    GrammarBackend,
    GrammarKind,
    GrammarMatcher,
    GrammarSource,
    Structure,
    TokenMask,
    Vocabulary,
)
from core.parsing.ebnf import parse_ebnf
from core.parsing.structure_tree import choices_of, structure_of
from plugin_xgrammar.matcher import XgrammarCompiled, XgrammarMatcher
from plugin_xgrammar.patterns import text_pattern
from plugin_xgrammar.schemas import rewritten, schema_rules
from plugin_xgrammar.settings import Options
from plugin_xgrammar.structures import StructureRewriter, ebnf_text, escaped

FEW_MATCHERS = 4


class XgrammarGrammar(GrammarBackend):
    """Masks are computed when a grammar is compiled, for the whole vocabulary; steps are short then."""

    kinds: ClassVar[frozenset[GrammarKind]] = frozenset(
        {"json_schema", "json_object", "regex", "ebnf", "choice", "structural_tag"}
    )

    def __init__(self, vocabulary: Vocabulary, ctx: PluginContext) -> None:
        super().__init__(vocabulary, ctx)
        if not vocabulary.eos_token_ids:
            raise ConfigError("no token of the vocabulary ends a text", hint="constrained texts need an end token")
        self._options = ctx.settings if isinstance(ctx.settings, Options) else Options(**ctx.settings)
        ends = set(vocabulary.eos_token_ids)
        tokens = [b"" if i in ends else token for i, token in enumerate(vocabulary.tokens)]
        tokenizer = TokenizerInfo(tokens, VocabType.RAW, stop_token_ids=list(vocabulary.eos_token_ids))
        # Core keeps compiled grammars; a second cache here would only hide their size.
        self._compiler = GrammarCompiler(tokenizer, max_threads=self._options.compile_threads, cache_enabled=False)
        self._last_word = np.uint32((1 << ((len(tokens) - 1) % 32 + 1)) - 1)
        compact = {"any_whitespace": False, "separators": (",", ":")}
        flexible = {"max_whitespace_cnt": self._options.max_whitespace}
        self._json: dict[str, Any] = compact if self._options.whitespace == "compact" else flexible
        self._rules = schema_rules(self._options)
        self._threads = self._options.threads or min(8, len(os.sched_getaffinity(0)))
        self._batch = BatchGrammarMatcher(self._threads)._handle

    def compile(self, source: GrammarSource) -> CompiledGrammar:
        compiling = self._compiling(source)
        try:
            compiled = compiling()
        except RequestError:
            raise
        except (RuntimeError, ValueError, TypeError) as exc:
            raise RequestError(f"$: the {_WHAT[source.kind]} cannot be used: {_told(str(exc))}") from None
        return XgrammarCompiled(compiled, self.vocabulary.eos_token_ids, self._last_word)

    def fill_masks(self, matchers: Sequence[GrammarMatcher], masks: TokenMask) -> None:
        states, rows = [], []
        for row, matcher in enumerate(matchers):
            assert isinstance(matcher, XgrammarMatcher)
            if matcher.terminated:
                masks[row] = 0
            else:
                states.append(matcher.state)
                rows.append(row)
        if len(states) < FEW_MATCHERS or self._threads == 1:
            view = masks.view(np.int32)
            for state, row in zip(states, rows, strict=True):
                state.fill_next_token_bitmask(view, row, False)
        else:
            self._batch.batch_fill_next_token_bitmask(states, masks.view(np.int32), rows, False)
        masks[:, -1] &= self._last_word

    def _compiling(self, source: GrammarSource) -> Callable[[], Any]:
        """What is left to do once the source is checked."""
        compiler = self._compiler
        match source.kind:
            case "json_object":
                schema = self._rewritten({"type": "object"}, "$")
                return lambda: self._compile_schema(schema)
            case "json_schema":
                schema = self._rewritten(source.text, "$")
                return lambda: self._compile_schema(schema)
            case "regex":
                expression = self._expression(source.text, "$")
                return lambda: compiler.compile_regex(expression)
            case "ebnf":
                rules = self._ebnf(source.text)
                return lambda: compiler.compile_grammar(rules)
            case "choice":
                options = " | ".join(f'"{escaped(choice)}"' for choice in choices_of(source.text))
                return lambda: compiler.compile_grammar(f"root ::= {options}")
            case "structural_tag":
                structure = structure_of(source.text)
                return lambda: compiler.compile_structural_tag(self._structure(structure))
        raise RequestError(f"grammars of kind {source.kind!r} are not supported by xgrammar")

    def _rewritten(self, schema: Any, path: str) -> dict[str, Any]:
        return rewritten(schema, self._rules, path, self._options.whitespace == "compact")

    def _compile_schema(self, schema: Any) -> Any:
        return self._compiler.compile_json_schema(json.dumps(schema), strict_mode=False, **self._json)

    def _structure(self, structure: Structure) -> str:
        rewriter = StructureRewriter(self._schema_node, self._expression, self._ebnf)
        return json.dumps({"type": "structural_tag", "format": rewriter.node(structure)})

    def _schema_node(self, schema: Any, path: str) -> dict[str, Any]:
        made = self._rewritten(schema, path)
        if self._options.whitespace == "flexible":
            return {"type": "json_schema", "json_schema": made, **self._json}
        # Structures have no word for JSON without whitespace, but take grammars.
        grammar = Grammar.from_json_schema(json.dumps(made), strict_mode=False, **self._json)
        return {"type": "grammar", "grammar": str(grammar)}

    def _expression(self, pattern: str, path: str) -> str:
        return text_pattern(pattern, path, self._options.max_repeat)

    def _ebnf(self, text: str) -> str:
        return ebnf_text(parse_ebnf(text, max_repeat=self._options.max_repeat))


_WHAT = {
    "json_schema": "JSON schema",
    "json_object": "JSON object grammar",
    "regex": "regular expression",
    "ebnf": "EBNF grammar",
    "choice": "list of choices",
    "structural_tag": "structural tag",
}


def _told(message: str) -> str:
    """What the library says, without the place in its sources."""
    told = " ".join(message.split())
    return told.rpartition(" is false: ")[2][:400] if " is false: " in told else told.partition(": ")[2][:400] or told
