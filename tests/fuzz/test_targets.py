"""The targets of `make fuzz`, by hypothesis and shortly."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CHAT, TARGETS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode())
FIELDS = st.sampled_from(["messages", "prompt", "text", "max_tokens", "stop", "tools", "stream", "logit_bias", "seed"])
BODIES = st.dictionaries(FIELDS, JSON.map(json.loads), max_size=5).map(lambda body: json.dumps(body).encode())
PIECES = st.sampled_from(["{{", "}}", "{%", "%}", "for m in ", "messages", "endfor", "if", "endif", "|", "tojson", ".", "a", "'",  # noqa: E501
                          "[0]", "~", " ", "set x = ", "loop", "(", ")", "namespace", "macro f", "endmacro", "1", "*", "#}"])  # fmt: skip  # noqa: E501
TEMPLATES = st.lists(PIECES, max_size=14).map(lambda pieces: "".join(pieces).encode())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None)
@given(raw=st.one_of(st.binary(max_size=60), JSON, BODIES, TEMPLATES))
def test_any_bytes(name: str, raw: bytes) -> None:
    TARGETS[name](raw)


@pytest.mark.parametrize("name", TARGETS)
def test_good_bytes(name: str) -> None:
    TARGETS[name](json.dumps({"messages": CHAT, "prompt": "a"}).encode())
