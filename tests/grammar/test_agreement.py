"""Both backends, and Python's own expressions, agree on which texts fit: the same grammar as expression and as EBNF."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.interfaces.grammar import GrammarBackend, GrammarSource

from .suite import backend, takes, texts

LETTERS = 'ab"\\é中\n-]'
# (as an expression, as EBNF)
Both = tuple[str, str]


def literal(text: str) -> Both:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return re.escape(text), f'"{quoted}"'


def one_of(letters: set[str], negated: bool) -> Both:
    inside = "".join(f"\\x{ord(letter):02x}" if ord(letter) < 128 else letter for letter in sorted(letters))
    made = f"[{'^' if negated else ''}{inside}]"
    return made, made


def repeated(body: Both, bounds: tuple[int, int]) -> Both:
    least, most = bounds
    return f"(?:{body[0]}){{{least},{least + most}}}", f"({body[1]}){{{least},{least + most}}}"


leaves = st.text(LETTERS, min_size=1, max_size=3).map(literal) | st.builds(
    one_of, st.sets(st.sampled_from(LETTERS), min_size=1), st.booleans()
)
bounds = st.tuples(st.integers(0, 2), st.integers(0, 2))
grammars = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: tuple(map("".join, _spaced(parts)))),
        st.lists(inner, min_size=2, max_size=3).map(
            lambda parts: (f"(?:{'|'.join(p[0] for p in parts)})", f"({' | '.join(p[1] for p in parts)})")
        ),
        st.builds(repeated, inner, bounds),
        inner.map(lambda part: (f"(?:{part[0]})*", f"({part[1]})*")),
    ),
    max_leaves=8,
)


def _spaced(parts: list[Both]) -> tuple[str, str]:
    return "".join(part[0] for part in parts), " ".join(part[1] for part in parts)


@pytest.fixture(scope="module", params=["llguidance", "xgrammar"])
def made(request: pytest.FixtureRequest) -> GrammarBackend:
    return backend(request.param)


@settings(max_examples=30, deadline=None)
@example(both=(r"[\x22\x2d\x61]", r"[\x22\x2d\x61]"), examples=["-", "\\"])  # an escaped dash spans no range
@given(both=grammars, examples=st.lists(st.text(LETTERS, max_size=6), min_size=1, max_size=6))
def test_expressions_and_ebnf(made: GrammarBackend, both: Both, examples: list[str]) -> None:
    expression, ebnf = both
    as_regex = made.compile(GrammarSource("regex", expression))
    as_ebnf = made.compile(GrammarSource("ebnf", f"root ::= {ebnf}"))
    as_recursive = made.compile(GrammarSource("ebnf", f'root ::= {ebnf} | "<" root ">"'))
    wanted = re.compile(expression, re.DOTALL)
    for text in examples:
        fits = wanted.fullmatch(text) is not None
        assert takes(as_regex, text) == fits, f"{expression!r} on {text!r}"
        assert takes(as_ebnf, text) == fits, f"{ebnf!r} on {text!r}"
        assert takes(as_recursive, text) == fits, f"{ebnf!r} with recursion on {text!r}"
        inside = fits or wanted.fullmatch(f"<{text}>") is not None
        assert takes(as_recursive, f"<{text}>") == inside


@settings(max_examples=30, deadline=None)
@example(both=(r"[\x22\x2d\x61]", r"[\x22\x2d\x61]"), examples=["-", "\\"])  # an escaped dash spans no range
@given(both=grammars, examples=st.lists(st.text(LETTERS, max_size=6), min_size=1, max_size=6))
def test_patterns_of_json_strings(made: GrammarBackend, both: Both, examples: list[str]) -> None:
    schema = json.dumps({"type": "string", "pattern": f"^({both[0]})$"})
    grammar = made.compile(GrammarSource("json_schema", schema))
    wanted = re.compile(both[0], re.DOTALL)
    for text in examples:
        taken = takes(grammar, json.dumps(text, ensure_ascii=False))
        fits = wanted.fullmatch(text) is not None
        # XGrammar loses some texts of repeated escapes; what it takes must fit all the same.
        assert taken == fits or (fits and type(made).__name__ == "XgrammarGrammar"), f"{both[0]!r} on {text!r}"


@pytest.mark.parametrize(
    "pattern",
    [r"[^\\]", r'[^"]', r'[^"\\]', r"[^\n]", r"[^\[-\]]", r"\s", r"\S", r"\W", r".", r"[^a]", r"(a|\n)", r"[\t-z]"],
)
def test_characters_that_json_escapes(made: GrammarBackend, pattern: str) -> None:
    grammar = made.compile(GrammarSource("json_schema", json.dumps({"type": "string", "pattern": f"^{pattern}$"})))
    for char in '\\"\n\t\r\b\fa[]/ \x01\x7f中':
        for text in texts(char):
            assert not takes(grammar, text) or re.fullmatch(pattern, char, re.ASCII), f"{pattern} on {text}"
    assert any(takes(grammar, text) for char in "a b中\n" for text in texts(char))


@settings(max_examples=40, deadline=None)
@given(choices=st.lists(st.text(min_size=1, max_size=4).filter(lambda text: "\0" not in text), min_size=1, max_size=4))
def test_choices(made: GrammarBackend, choices: list[str]) -> None:
    try:
        "".join(choices).encode()
    except UnicodeEncodeError:
        return
    grammar = made.compile(GrammarSource("choice", json.dumps(choices)))
    assert all(takes(grammar, choice) for choice in choices)
    others = {choice + "x" for choice in choices} | {choice[:-1] for choice in choices}
    assert not any(takes(grammar, other) for other in others - set(choices))
