"""Types come from the schema, never from how a value looks."""

from __future__ import annotations

from typing import Any

import pytest
from example_tool_parser.values import to_json


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("3", {"type": "integer"}, 3),
        ("3", {"type": "string"}, "3"),
        ("3", None, "3"),
        ("three", {"type": "integer"}, "three"),
        ("true", {"type": "boolean"}, True),
        ("null", {"type": ["string", "null"]}, None),
        ('{"a": [1]}', None, {"a": [1]}),
        ("NaN", {"type": "number"}, "NaN"),
        ("[" * 100_000, None, "[" * 100_000),
        ("red", {"enum": ["red", "blue"]}, "red"),
    ],
)
def test_to_json(text: str, schema: Any, value: Any) -> None:
    assert to_json(text, schema) == value
