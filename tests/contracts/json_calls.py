"""What the suites of tool parsers with JSON bodies share: a call, how it is meant, and what is broken."""

from __future__ import annotations

from core.testing.contracts.tool_parser import ToolParserContract, ToolSample

PLAIN = ToolSample("No call at all: 1 < 2, {a} [b].\n", content="No call at all: 1 < 2, {a} [b].\n")
CITY = '{"city": "Köln", "days": 3}'
MEANT = ("get_weather", {"city": "Köln", "days": 3})
HARD = '{"a": {"b": ["</b>", -1.5e3, null, "{\\"x\\": 1}", "]\\u00e9\\\\"]}, "c": {}}'
HARD_MEANT = ("get.time-2", {"a": {"b": ["</b>", -1500.0, None, '{"x": 1}', "]é\\"]}, "c": {}})
LONG = '{"city": "' + "Köln, ".join(["\\n"] * 150) + '"}'
LONG_MEANT = ("get_weather", {"city": "Köln, ".join(["\n"] * 150)})
BROKEN = ("{", "{]}", '{"city": 01}', '{"city" "x"}', '{"city": "x"}}', '{"city": tru}', '{"a": "\n"}', "[1]", "3", "")


def obj(name: str, arguments: str, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


class JsonCalls(ToolParserContract):
    arguments_as_they_come = True
    max_examples = 20


class Short(ToolParserContract):
    """Another name for a parser whose suite runs in full."""

    max_examples = 5

    def __init_subclass__(cls) -> None:
        calls = [sample for sample in cls.samples if len(sample.calls) == 1 and sample.composable]
        several = [sample for sample in cls.samples if len(sample.calls) > 1]
        cls.samples = (PLAIN, calls[0], min(several, key=lambda sample: len(sample.text)))
        cls.malformed = cls.malformed[:2]
