"""Tool parsers of models with JSON between markers of their own: DeepSeek, Kimi, GigaChat, gpt-oss."""

from __future__ import annotations

from core.testing.contracts.reasoning_parser import ReasoningParserContract, ReasoningSample
from core.testing.contracts.tool_parser import ToolSample
from plugin_parser_gpt_oss.reasoning_parser import MARKERS
from tests.contracts.json_calls import (
    BROKEN,
    CITY,
    HARD,
    HARD_MEANT,
    LONG,
    LONG_MEANT,
    MEANT,
    PLAIN,
    JsonCalls,
    Short,
    obj,
)

V3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
V31 = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
SECTION = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"


class DeepSeek(JsonCalls):
    call = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.samples:
            return
        one, two = cls.call.format("get_weather", CITY), cls.call.format("get.time-2", HARD)
        cls.samples = (
            PLAIN,
            ToolSample(SECTION.format(one), calls=(MEANT,)),
            ToolSample("Look.\n\n" + SECTION.format(f"{one}\n{two}") + " .", "Look. .", calls=(MEANT, HARD_MEANT)),
            ToolSample(SECTION.format(cls.call.format("f", "{}") * 2), calls=(("f", {}), ("f", {}))),
            ToolSample(f"<｜tool▁calls▁begin｜>{one}", calls=(MEANT,), composable=False),
            ToolSample(SECTION.format(one)[:-25], calls=(MEANT,), composable=False),
            ToolSample(SECTION.format(f"{one} x"), " x<｜tool▁calls▁end｜>", calls=(MEANT,)),
        )
        cls.malformed = (
            *(SECTION.format(cls.call.format("f", broken)) for broken in BROKEN),
            SECTION.format(""),
            SECTION.format(cls.call.format("", "{}")),
            SECTION.format("x"),
            SECTION.format("<｜tool▁call▁begin｜>"),
            one,
        )
        cls.long = ToolSample(SECTION.format(cls.call.format("get_weather", LONG)), calls=(LONG_MEANT,))


class TestDeepSeekV3(DeepSeek):
    name = "deepseekv3"
    call = V3


class TestDeepSeekV3Alias(Short, TestDeepSeekV3):
    name = "deepseek_v3"


class TestDeepSeekV31(DeepSeek):
    name = "deepseekv31"
    call = V31


class TestDeepSeekV31Alias(Short, TestDeepSeekV31):
    name = "deepseek_v31"


def kimi(*calls: tuple[str, str]) -> str:
    text = "".join(
        f"<|tool_call_begin|>{name}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"
        for name, arguments in calls
    )
    return f"<|tool_calls_section_begin|>{text}<|tool_calls_section_end|>"


class TestKimiK2(JsonCalls):
    name = "kimi_k2"
    samples = (
        PLAIN,
        ToolSample(kimi(("functions.get_weather:0", CITY)), calls=(MEANT,)),
        ToolSample(
            "Hm. " + kimi(("functions.get_weather:0", CITY), ("functions.get.time-2:11", HARD)),
            content="Hm.",
            calls=(MEANT, HARD_MEANT),
        ),
        ToolSample(kimi((" get_weather ", f"\n{CITY}\n")), calls=(MEANT,)),
        ToolSample(kimi(("functions.get_weather:0", CITY))[:-35], calls=(MEANT,), composable=False),
    )
    malformed = (
        *(kimi(("functions.f:0", broken)) for broken in BROKEN),
        kimi(),
        kimi(("functions.:0", "{}")),
        kimi(("f g", "{}")),
        kimi(("f", "{}"))[28:],
    )
    long = ToolSample(kimi(("functions.get_weather:0", LONG)), calls=(LONG_MEANT,))


class TestGigaChat3(JsonCalls):
    name = "gigachat3"
    samples = (
        PLAIN,
        ToolSample("A function call is this.", content="A function call is this."),
        ToolSample(f"function call<|role_sep|>\n{obj('get_weather', CITY)}<|message_sep|>\n\n", calls=(MEANT,)),
        ToolSample(
            f"Sure.<|message_sep|>\n\nfunction call<|role_sep|>\n{obj('get_weather', CITY)}",
            content="Sure.<|message_sep|>",
            calls=(MEANT,),
        ),
        ToolSample(
            f"<|function_call|>{obj('get_weather', CITY)}function call{obj('get.time-2', HARD)}",
            calls=(MEANT, HARD_MEANT),
        ),
    )
    malformed = (
        *(f"function call<|role_sep|>\n{obj('f', broken)}" for broken in BROKEN if broken != '{"city": "x"}}'),
        "function call<|role_sep|>",
        "function call {a}",
    )
    long = ToolSample(f"function call{obj('get_weather', LONG)}", calls=(LONG_MEANT,))


CALL = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}"
IN_ROLE = "<|start|>assistant to=functions.{}<|channel|>commentary json<|message|>{}"


class TestGptOss(JsonCalls):
    name = "gpt-oss"
    samples = (
        PLAIN,
        ToolSample(CALL.format("get_weather", CITY), calls=(MEANT,)),
        ToolSample(CALL.format("get_weather", CITY) + "<|call|>", calls=(MEANT,)),
        ToolSample(IN_ROLE.format("get_weather", CITY) + "<|call|>", calls=(MEANT,)),
        ToolSample(f"<|channel|>commentary to=functions.get_weather code<|message|>{CITY}<|call|>", calls=(MEANT,)),
        ToolSample(f" to=functions.get_weather<|channel|>analysis<|message|>{CITY}", calls=(MEANT,), composable=False),
        ToolSample(
            f"One.{CALL.format('get_weather', CITY)}<|end|>"
            f"<|start|>assistant<|channel|>analysis to=functions.get.time-2<|message|>{HARD}<|call|>Two.",
            content="One.Two.",
            calls=(MEANT, HARD_MEANT),
        ),
    )
    malformed = (
        *(CALL.format("f", broken) for broken in BROKEN if broken != '{"city": "x"}}'),
        *(IN_ROLE.format("f", broken) for broken in BROKEN if broken != '{"city": "x"}}'),
        "<|channel|>commentary to=python<|message|>{}",
        "<|channel|>final<|message|>{}<|return|>",
        "to be or not to=functions.f",
    )
    long = ToolSample(CALL.format("get_weather", LONG) + "<|call|>", calls=(LONG_MEANT,))


class TestOpenai(Short, TestGptOss):
    name = "openai"


class TestGptOssReasoning(ReasoningParserContract):
    name = "gpt-oss"
    max_examples = 40
    markers = MARKERS
    samples = (
        ReasoningSample(
            "<|channel|>analysis<|message|>four<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
            reasoning="four",
            content="4",
        ),
        ReasoningSample("four<|end|><|start|>assistant<|channel|>final<|message|>4", "four", "4", prompt_opens=True),
        ReasoningSample("just text", content="just text"),
        ReasoningSample("<|channel|>final<|message|>4", content="4", prompt_opens=True),
        ReasoningSample(
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
            + IN_ROLE.format("f", '{"a": "<|end|>"}')
            + "<|call|><|start|>assistant<|channel|>analysis<|message|>b",
            reasoning="ab",
            content="I look." + IN_ROLE.format("f", '{"a": "<|end|>"}') + "<|call|>",
        ),
        ReasoningSample(
            "<|channel|>analysis<|message|>a" + CALL.format("f", "{}"), reasoning="a", content=CALL.format("f", "{}")
        ),
        ReasoningSample(
            " to=functions.f<|channel|>commentary<|message|>{}",
            content=" to=functions.f<|channel|>commentary<|message|>{}",
            prompt_opens=True,
        ),
        ReasoningSample("to be", reasoning="to be", prompt_opens=True),
    )


class TestGptOssReasoningAlias(TestGptOssReasoning):
    name = "openai_gptoss"
    samples = TestGptOssReasoning.samples[:3]
    max_examples = 5
