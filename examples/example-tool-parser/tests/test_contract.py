"""Core's contract of tool-call parsers, and of the package."""

from __future__ import annotations

from core.testing.contracts.distribution import DistributionContract
from core.testing.contracts.tool_parser import ToolParserContract, ToolSample

CALL = "<function=get_weather>\n<parameter=city>Köln</parameter>\n<parameter=days>3</parameter>\n</function>"
MEANT = ("get_weather", {"city": "Köln", "days": 3})


class TestFunctionTags(ToolParserContract):
    name = "function_tags"
    samples = (
        ToolSample("Is 1 < 2? Yes.\n", content="Is 1 < 2? Yes.\n"),
        ToolSample(CALL, calls=(MEANT,)),
        ToolSample(f"One:\n{CALL}\nTwo:\n{CALL}", content="One:\n\nTwo:\n", calls=(MEANT, MEANT)),
        ToolSample("<function=now></function>", calls=(("now", {}),)),
        # A text that looks like a number stays a text where the schema says so.
        ToolSample(
            "<function=get_weather><parameter=city>50667</parameter></function>",
            calls=(("get_weather", {"city": "50667"}),),
        ),
        # Values of several lines, with other tags in them.
        ToolSample(
            '<function=write><parameter=text>a <b>\n"c"</parameter><parameter=tags>["x", 1]</parameter></function>',
            calls=(("write", {"text": 'a <b>\n"c"', "tags": ["x", 1]}),),
        ),
    )
    malformed = (
        "<function=>nothing</function>",
        "<function=f>some text</function>",
        "<function=f><parameter=a>1</parameter><parameter=a>2</parameter></function>",
        "<function=f><parameter=a>1</function>",
        "<function=f><parameter=a>1</parameter>",
        "<functio",
        "</function>",
    )


class TestPackage(DistributionContract):
    package = "example_tool_parser"
