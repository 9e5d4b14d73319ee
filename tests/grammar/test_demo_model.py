"""Every published schema that is taken gives valid documents with the demo model, whatever is drawn."""

from __future__ import annotations

import decimal
import json

import pytest
from jsonschema import Draft202012Validator

from core import LLM

from .suite import backend, cases
from .test_json_schema import compiled, exact

MAX_TOKENS = 160


@pytest.mark.parametrize("name", ["llguidance", pytest.param("xgrammar", marks=pytest.mark.slow)])
def test_documents_of_the_demo_model_are_valid(name: str) -> None:
    made = backend(name)
    schemas = [case.schema for case in cases() if compiled(made, case.schema) is not None]
    with LLM("demo", grammar_backend=name, max_running_requests=64, max_total_tokens=64 * 256) as llm:
        prompt = [{"role": "user", "content": "Give me an example."}]
        drawn = {"temperature": 1.5, "top_p": 1.0, "max_tokens": MAX_TOKENS}
        asked = [{**drawn, "json_schema": schema, "seed": seed} for seed, schema in enumerate(schemas)]
        answers = llm.chat([prompt] * len(schemas), asked)
    complete = 0
    for schema, answer in zip(schemas, answers, strict=True):
        completion = answer.completions[0]
        assert completion.finish_reason in ("stop", "length"), completion.error
        if completion.finish_reason == "length":
            continue  # it went on in white space or digits
        complete += 1
        with decimal.localcontext(prec=100_000):
            Draft202012Validator(exact(json.dumps(schema))).validate(exact(completion.text))
    print(f"{name}: {complete} of {len(schemas)} documents complete within {MAX_TOKENS} tokens")
    assert complete > len(schemas) // 2
