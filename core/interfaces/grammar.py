"""GrammarBackend: structured output. Which tokens may come next, for one text at a time.

State is transactional: a token is accepted or not, and accepted tokens can be rolled back, so that a step planned ahead
or a rejected draft leaves nothing behind. Compiling happens off the engine's loop, under a time limit that core keeps;
a grammar that cannot be compiled is a RequestError, never an exception in a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from core.interfaces.context import PluginContext

GrammarKind = Literal["json_schema", "json_object", "regex", "ebnf", "choice", "structural_tag"]
TokenMask = npt.NDArray[np.uint32]

# A tree of what a text is made of, as JSON-able objects with a "type". Users write it as `structural_tag`; tool
# parsers make it to force calls. The types, which are those of the format that other servers take too:
#   {"type": "const_string", "value": TEXT}
#   {"type": "json_schema", "json_schema": SCHEMA}
#   {"type": "regex", "pattern": PATTERN}
#   {"type": "grammar", "grammar": EBNF}
#   {"type": "any_text"}                                  any text, to the end or up to what follows
#   {"type": "sequence", "elements": [NODE, ...]}
#   {"type": "or", "elements": [NODE, ...]}
#   {"type": "tag", "begin": TEXT, "content": NODE, "end": TEXT}
#   {"type": "triggered_tags", "triggers": [TEXT, ...], "tags": [TAG, ...], "at_least_one": BOOL,
#    "stop_after_first": BOOL}
#       any text; where a trigger (a beginning of tags' `begin`) comes, one of its tags must follow. at_least_one:
#       the text begins with a tag
#   {"type": "tags_with_separator", "tags": [TAG, ...], "separator": TEXT, "at_least_one": BOOL,
#    "stop_after_first": BOOL}
#       nothing but tags
Structure = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """What a request asked for. text: the JSON schema, the expression, the EBNF rules (GBNF: `name ::= ...`, root rule
    `root`), a JSON list of choices, or a `Structure` as JSON; empty for "json_object"."""

    kind: GrammarKind
    text: str = ""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens: bytes of every token id, empty for ids that stand for no text. eos_token_ids: ids that end a text; they
    are allowed exactly where the grammar may end."""

    tokens: Sequence[bytes]
    eos_token_ids: tuple[int, ...]

    @property
    def mask_words(self) -> int:
        """32-bit words of a mask over the vocabulary."""
        return -(-len(self.tokens) // 32)


class GrammarMatcher(ABC):
    """State of one text.

    Where a backend reaches a limit of its own in a step (a text for which its automaton grows too large), masks have no
    bit from then on and no token is accepted, the one that reached the limit included.
    """

    @abstractmethod
    def fill_mask(self, mask: TokenMask) -> None:
        """mask [mask_words] uint32, little end first: bit `id % 32` of word `id // 32` is set if the token may come
        next. Every word is written; bits past the vocabulary are 0."""

    @abstractmethod
    def accept(self, token_id: int) -> bool:
        """Take a token. False, and no change, if it may not come next; no id outside of the vocabulary may."""

    @abstractmethod
    def rollback(self, num_tokens: int) -> None:
        """Take back the last accepted tokens; any number of those accepted so far."""

    @property
    @abstractmethod
    def terminated(self) -> bool:
        """Whether an end-of-text token was accepted."""

    def forced_text(self) -> bytes:
        """Bytes that must come next whatever is sampled; may be empty though something is forced."""
        return b""


class CompiledGrammar(ABC):
    """A grammar ready for use, shared by requests that ask for the same. Immutable."""

    @abstractmethod
    def matcher(self) -> GrammarMatcher:
        """A fresh state at the beginning of a text."""

    @property
    def num_bytes(self) -> int:
        """Memory it takes, for core's cache; an estimate will do."""
        return 0


class GrammarBackend(ABC):
    """Compiles grammars for one vocabulary. `compile` is called from worker threads, several at a time.

    kinds: of source that it takes.
    """

    kinds: ClassVar[frozenset[GrammarKind]]

    def __init__(self, vocabulary: Vocabulary, ctx: PluginContext) -> None:
        self.vocabulary = vocabulary
        self.ctx = ctx

    @abstractmethod
    def compile(self, source: GrammarSource) -> CompiledGrammar:
        """Raises RequestError for a source that is wrong or has a feature that is not supported, naming where (for
        JSON schemas the path, "$.properties.age.pattern")."""

    def fill_masks(self, matchers: Sequence[GrammarMatcher], masks: TokenMask) -> None:
        """`fill_mask` of several texts at once: masks [len(matchers), mask_words] uint32, a row each. Called from one
        thread at a time, in every step that samples constrained texts."""
        for matcher, mask in zip(matchers, masks, strict=True):
            matcher.fill_mask(mask)
