"""Both backends against the published cases of JSON Schema, and against texts made at random under their masks."""

from __future__ import annotations

import decimal
import json
from decimal import Decimal, DecimalException
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from core.interfaces.errors import RequestError
from core.interfaces.grammar import CompiledGrammar, GrammarBackend, GrammarSource

from .sampling import VOCABULARY, at_random, sample
from .schemas import SCHEMAS
from .suite import backend, cases, run

BACKENDS = ("llguidance", "xgrammar")
# How many of the published schemas a backend takes, of 368, and valid instances that it then does not: a change of
# either is to be looked at, and docs/plugins/grammar.md says them too.
ACCEPTED = {"llguidance": (156, 14), "xgrammar": (124, 102)}


@pytest.mark.parametrize("name", BACKENDS)
def test_published_cases(name: str) -> None:
    """A schema is refused with a place, or taken at its word: no invalid instance gets through."""
    made = backend(name)
    outcomes = [run(case, made) for case in cases()]
    taken = [outcome for outcome in outcomes if not outcome.refused]
    lax = {f"{o.case.file}: {o.case.title}": o.too_lax for o in taken if o.too_lax}
    assert not lax, f"{name} takes invalid instances: {lax}"
    for outcome in outcomes:
        assert not outcome.refused or outcome.refused.startswith("$"), outcome.refused
    too_strict = sum(len(outcome.too_strict) for outcome in taken)
    valid = sum(outcome.num_valid for outcome in taken)
    print(f"{name}: {len(taken)} of {len(outcomes)} schemas accepted; {too_strict} of {valid} valid instances refused")
    assert (len(taken), too_strict) == ACCEPTED[name]
    # Refusing everything, or every instance, would pass what is above.
    assert valid - too_strict > 150


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("whitespace", ["flexible", "compact"])
def test_random_texts_are_valid(name: str, whitespace: str) -> None:
    check_random_texts(backend(name, VOCABULARY, whitespace=whitespace), num_seeds=5, least=500)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_many_random_texts_are_valid(name: str) -> None:
    check_random_texts(backend(name, VOCABULARY), num_seeds=150, least=10_000)


@pytest.mark.parametrize("name", BACKENDS)
def test_most_schemas_of_users_are_taken(name: str) -> None:
    made = backend(name)
    refused = {"llguidance": set(), "xgrammar": {"fractions", "multiples", "both"}}[name]
    got = {title for title, schema in SCHEMAS.items() if compiled(made, schema) is None}
    assert got == refused


def check_random_texts(made: GrammarBackend, num_seeds: int, least: int) -> None:
    """Every text that ends is JSON and valid. least: texts that must have ended, so that the test says something."""
    num_texts = 0
    for schema in [*SCHEMAS.values(), *(case.schema for case in cases())]:
        grammar = compiled(made, schema)
        if grammar is None:
            continue
        validator = Draft202012Validator(exact(json.dumps(schema)))
        for seed in range(num_seeds):
            text = sample(grammar, at_random(seed))
            if text is not None:
                num_texts += 1
                # What is no UTF-8 is shown to users as U+FFFD.
                with decimal.localcontext(prec=100_000):  # a multiple of a number of any size
                    validator.validate(exact(text.decode(errors="replace")))
    assert num_texts >= least


def compiled(made: GrammarBackend, schema: Any) -> CompiledGrammar | None:
    try:
        return made.compile(GrammarSource("json_schema", json.dumps(schema)))
    except RequestError:
        return None


def exact(text: str) -> Any:
    """JSON with fractions as decimals: 0.59 is a multiple of 0.0001, which floats do not know."""
    return json.loads(text, parse_float=number)


def number(text: str) -> Any:
    try:
        made = Decimal(text)
        return made if abs(made.adjusted()) < 300 else float(text)
    except DecimalException:
        return float(text)
