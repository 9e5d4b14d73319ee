"""What a real grammar backend lets through for a forced call, the parser of the format reads as calls."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from core.interfaces.grammar import GrammarSource, Vocabulary
from core.interfaces.parsers import ToolChoice
from core.registry.catalog import Catalog
from core.registry.context import plugin_context
from core.testing.contracts.tool_parser_streams import parse
from tests.parsing.test_tag_structure import NAMES, TOOLS, parser

CLOSING = ["</parameter>", "</arg_value>", "</steptml:parameter>", "</｜DSML｜parameter>"]
TOKENS = [*(bytes([code]) for code in range(1, 128)), "｜".encode(), *(text.encode() for text in CLOSING), b""]
END = len(TOKENS) - 1
VOCABULARY = Vocabulary(TOKENS, (END,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["llguidance"])
def test_what_a_backend_lets_through_is_read(backend: str, name: str) -> None:
    pytest.importorskip(backend)
    catalog = Catalog.scan()
    grammars = catalog.load("grammar", backend)(VOCABULARY, plugin_context(catalog.record("grammar", backend), {}))
    tools = parser(name)
    structure = tools.structure(TOOLS, ToolChoice("required"))
    compiled = grammars.compile(GrammarSource("structural_tag", json.dumps(structure)))
    finished = 0
    for seed in range(6):
        choose, matcher, text = random.Random(seed), compiled.matcher(), b""
        mask = np.zeros(VOCABULARY.mask_words, np.uint32)
        for _ in range(600):
            matcher.fill_mask(mask)
            allowed = np.nonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))[0].tolist()
            assert allowed, f"nothing may follow {text!r}"
            ends = [token for token in allowed if token >= 128]  # what ends a text, so that walks come to an end
            token = choose.choice(ends if ends and choose.random() < 0.5 else allowed)
            assert matcher.accept(token)
            if token == END:
                break
            text += TOKENS[token]
        else:
            continue
        finished += 1
        result = parse(tools.stream(TOOLS), [text.decode()])
        assert result.calls
        assert not result.content.strip(), f"{result.content!r} is left of {text.decode()!r}"
        for called, arguments in result.calls:
            values = json.loads(arguments)
            assert called != "get_weather" or values.keys() >= {"unit", "city", "days"}
    assert finished, "no walk came to its end"
