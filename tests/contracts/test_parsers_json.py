"""The suites of the tool parsers whose calls have JSON bodies. Names for the same parser are tested in short."""

from __future__ import annotations

from types import MappingProxyType

from core.testing.contracts.reasoning_parser import ReasoningParserContract, ReasoningSample
from core.testing.contracts.tool_parser import ToolParserContract, ToolSample
from plugin_parser_gpt_oss.reasoning_parser import MARKERS

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


class TestHermes(JsonCalls):
    name = "hermes"
    samples = (
        PLAIN,
        ToolSample(f"<tool_call>\n{obj('get_weather', CITY)}\n</tool_call>", calls=(MEANT,)),
        ToolSample(f"See:\n<tool_call>{obj('get_weather', CITY)}</tool_call>\n", content="See:", calls=(MEANT,)),
        ToolSample(
            f"<tool_call>{obj('get_weather', CITY)}</tool_call>\n<tool_call> {obj('get.time-2', HARD)} </tool_call>",
            calls=(MEANT, HARD_MEANT),
        ),
        ToolSample(
            '<tool_call>{"arguments": {"city": "R"}, "id": 3, "name": "f"}</tool_call>', calls=(("f", {"city": "R"}),)
        ),
        ToolSample(
            '<tool_call>{"name": "f", "arguments": "{\\"city\\": \\"R\\"}"}</tool_call> and',
            content=" and",
            calls=(("f", {"city": "R"}),),
        ),
        ToolSample('<tool_call>{"name": "f"}</tool_call>', calls=(("f", {}),)),
        ToolSample('<tool_call>{"name": "f", "arguments": null}</tool_call>', calls=(("f", {}),)),
        ToolSample(f"<tool_call>{obj('get_weather', CITY)}", calls=(MEANT,), composable=False),
        ToolSample(f"<tool_call>{obj('get_weather', CITY)}</tool_", calls=(MEANT,), composable=False),
        ToolSample(
            '<tool_call>{"name": "<tool_call>{"name": "f"}</tool_call>',
            content='<tool_call>{"name": "',
            calls=(("f", {}),),
        ),
    )
    malformed = (
        *(f"<tool_call>{obj('f', broken)}</tool_call>" for broken in BROKEN),
        "<tool_call>no JSON</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "other": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "[1]"}</tool_call>',
        '<tool_call>{"name": "\\ud83d", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\udc00\\"}"}</tool_call>',
        f"<tool_call>{obj('f', CITY)}</tool>",
        f"<tool_call>{obj('f', CITY)} and more</tool_call>",
        '<tool_call>{"name": "f", "argum',
        "a < b, and <tool is no marker",
        "</tool_call>",
        "<tool_call>" * 5,
        "<tool_call>" + obj("f", '{"a": ' + "[" * 130 + "]" * 130 + "}") + "</tool_call>",
    )
    long = ToolSample(f"<tool_call>{obj('get_weather', LONG)}</tool_call>", calls=(LONG_MEANT,))


class TestQwen(Short, TestHermes):
    name = "qwen"


class TestQwen25(Short, TestHermes):
    name = "qwen25"


class TestHermesGivenOutAtOnce(TestHermes):
    """Without holding back, all laws hold but that a call with broken arguments is text."""

    samples = TestHermes.samples[:4]
    settings = MappingProxyType({"hold": 0})
    malformed = (
        "<tool_call>no JSON</tool_call>",
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
    )


class TestTrinity(JsonCalls):
    name = "trinity"
    samples = (
        PLAIN,
        TestHermes.samples[1],
        TestHermes.samples[3],
        ToolSample(
            f"<think>Let me look.\n<tool_call>{obj('get_weather', CITY)}</tool_call>\n</think>\nSo.",
            content="<think>Let me look.\nSo.",
            calls=(MEANT,),
        ),
    )
    malformed = TestHermes.malformed[:12]
    long = TestHermes.long


class TestLlama3(JsonCalls):
    name = "llama3"
    samples = (
        PLAIN,
        ToolSample('{"answer": 42}', content='{"answer": 42}', composable=False),
        ToolSample(obj("get_weather", CITY, "parameters"), calls=(MEANT,), composable=False),
        ToolSample(f" \n{obj('get_weather', CITY)} done", content=" done", calls=(MEANT,), composable=False),
        ToolSample(
            f"{obj('get_weather', CITY, 'parameters')}; {obj('get.time-2', HARD, 'parameters')}",
            calls=(MEANT, HARD_MEANT),
            composable=False,
        ),
        ToolSample(
            f"{obj('get_weather', CITY, 'parameters')}\n{obj('get.time-2', HARD, 'parameters')} x",
            content=" x",
            calls=(MEANT, HARD_MEANT),
            composable=False,
        ),
        ToolSample(f"<|python_tag|>{obj('get_weather', CITY, 'parameters')}", calls=(MEANT,)),
        ToolSample(
            f'ok <|python_tag|>{{"type": "function", {obj("get_weather", CITY)[1:]} ; {obj("get.time-2", HARD)} end',
            content="ok end",
            calls=(MEANT, HARD_MEANT),
        ),
        ToolSample(f"{obj('get_weather', CITY)}; x", content="; x", calls=(MEANT,), composable=False),
    )
    malformed = (
        *(obj("f", broken) for broken in BROKEN if broken != '{"city": "x"}}'),
        *(f"<|python_tag|>{obj('f', broken)}" for broken in BROKEN if broken != '{"city": "x"}}'),
        '{"name": "f"}',
        '{"name": "Ann", "age": 3}',
        '<|python_tag|>brave_search.call(query="x")',
        f"Not at the start: {obj('f', CITY)}",
    )
    long = ToolSample(obj("get_weather", LONG, "parameters"), calls=(LONG_MEANT,))


class TestLlama4Json(Short, TestLlama3):
    name = "llama4_json"


class TestLlama3Json(Short, TestLlama3):
    name = "llama3_json"


class TestMistral(JsonCalls):
    name = "mistral"
    samples = (
        PLAIN,
        ToolSample(f"[TOOL_CALLS][{obj('get_weather', CITY)}]", calls=(MEANT,)),
        ToolSample(
            f'[TOOL_CALLS] [{obj("get_weather", CITY)[:-1]}, "id": "9Ae3bDc2F"}}, {obj("get.time-2", HARD)}] ',
            calls=(MEANT, HARD_MEANT),
        ),
        ToolSample(
            f"Yes. [TOOL_CALLS]get_weather[ARGS]{CITY}[TOOL_CALLS]get.time-2[CALL_ID]9Ae3bDc2F[ARGS]{HARD}",
            content="Yes.",
            calls=(MEANT, HARD_MEANT),
        ),
        ToolSample(f"[TOOL_CALLS]get_weather{CITY}", calls=(MEANT,)),
        ToolSample(f"[TOOL_CALLS]{obj('get_weather', CITY)}", calls=(MEANT,)),
        ToolSample(f"[TOOL_CALLS][{obj('get_weather', CITY)}", calls=(MEANT,), composable=False),
        ToolSample(f"[TOOL_CALLS][{obj('get_weather', CITY)}, x]", content=", x]", calls=(MEANT,)),
    )
    malformed = (
        *(f"[TOOL_CALLS][{obj('f', broken)}]" for broken in BROKEN if broken != '{"city": "x"}}'),
        *(f"[TOOL_CALLS]f[ARGS]{broken}" for broken in BROKEN if broken != '{"city": "x"}}'),
        "[TOOL_CALLS][]",
        "[TOOL_CALLS][1]",
        "[TOOL_CALLS]f[CALL_ID][ARGS]{}",
        "[TOOL_CALLS][ARGS]{}",
        "[TOOL_CALLS] f g {}",
        f"[TOOL_CALLS]{'f' * 300}[ARGS]{{}}",
    )
    long = ToolSample(f"[TOOL_CALLS]get_weather[ARGS]{LONG}", calls=(LONG_MEANT,))


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


def cohere(name: str, arguments: str) -> str:
    return f'{{"tool_call_id": "0", "tool_name": "{name}", "parameters": {arguments}}}'


class TestCohere(JsonCalls):
    name = "cohere"
    samples = (
        PLAIN,
        ToolSample(f"<|START_ACTION|>[\n    {cohere('get_weather', CITY)}\n]<|END_ACTION|>", calls=(MEANT,)),
        ToolSample(
            f"So: <|START_ACTION|>[{cohere('get_weather', CITY)},\n{cohere('get.time-2', HARD)}]<|END_ACTION|>",
            content="So:",
            calls=(MEANT, HARD_MEANT),
        ),
        ToolSample(f"<|START_ACTION|>{cohere('get_weather', CITY)}<|END_ACTION|>", calls=(MEANT,)),
        ToolSample(f"<|START_ACTION|>[{cohere('get_weather', CITY)}", calls=(MEANT,), composable=False),
    )
    malformed = (
        *(f"<|START_ACTION|>[{cohere('f', b)}]<|END_ACTION|>" for b in BROKEN if b != '{"city": "x"}}'),
        f"<|START_ACTION|>[{obj('f', CITY)}]<|END_ACTION|>",
        "<|START_ACTION|>[]<|END_ACTION|>",
    )
    long = ToolSample(f"<|START_ACTION|>[{cohere('get_weather', LONG)}]<|END_ACTION|>", calls=(LONG_MEANT,))


class TestCohereCommand3(Short, TestCohere):
    name = "cohere_command3"


class TestCohereCommand4(Short, TestCohere):
    name = "cohere_command4"


class TestGranite(JsonCalls):
    name = "granite"
    samples = (
        PLAIN,
        ToolSample(f"<|tool_call|>[{obj('get_weather', CITY)}]", calls=(MEANT,)),
        ToolSample(
            f"I will. <tool_call> [{obj('get_weather', CITY)}, {obj('get.time-2', HARD)}]</tool_call>",
            content="I will.",
            calls=(MEANT, HARD_MEANT),
        ),
    )
    malformed = (
        *(f"<|tool_call|>[{obj('f', broken)}]" for broken in BROKEN if broken != '{"city": "x"}}'),
        f"<|tool_call|>{obj('f', CITY)}",
        "<|tool_call|>[]",
    )
    long = ToolSample(f"<|tool_call|>[{obj('get_weather', LONG)}]", calls=(LONG_MEANT,))


class TestGranite4(Short, TestHermes):
    name = "granite4"


class TestGranite20bFc(JsonCalls):
    name = "granite-20b-fc"
    samples = (
        PLAIN,
        ToolSample(f"<function_call> {obj('get_weather', CITY)}", calls=(MEANT,)),
        ToolSample(
            f"<function_call> {obj('get_weather', CITY)}\n<function_call>{obj('get.time-2', HARD)}",
            calls=(MEANT, HARD_MEANT),
        ),
    )
    malformed = tuple(f"<function_call>{obj('f', broken)}" for broken in BROKEN if broken != '{"city": "x"}}')
    long = ToolSample(f"<function_call>{obj('get_weather', LONG)}", calls=(LONG_MEANT,))


class TestPhi4(JsonCalls):
    name = "phi4"
    samples = (
        PLAIN,
        ToolSample("Use functools[0] of it.", content="Use functools[0] of it."),
        ToolSample(f"functools[{obj('get_weather', CITY)}]", calls=(MEANT,)),
        ToolSample(
            f"Ok. functools[ {obj('get_weather', CITY)} , {obj('get.time-2', HARD, 'parameters')} ]",
            content="Ok.",
            calls=(MEANT, HARD_MEANT),
        ),
        ToolSample(f"<|tool_call|>[{obj('get_weather', CITY)}]<|/tool_call|>", calls=(MEANT,)),
        ToolSample(
            f"<|tool_call|>{obj('get_weather', CITY)}<|/tool_call|>"
            f"<|tool_call|>{obj('get.time-2', HARD)}<|/tool_call|>",
            calls=(MEANT, HARD_MEANT),
        ),
    )
    malformed = (
        *(f"functools[{obj('f', broken)}]" for broken in BROKEN if broken != '{"city": "x"}}'),
        *(f"<|tool_call|>{obj('f', broken)}<|/tool_call|>" for broken in BROKEN),
    )
    long = ToolSample(f"functools[{obj('get_weather', LONG)}]", calls=(LONG_MEANT,))


class TestPhi4MiniJson(Short, TestPhi4):
    name = "phi4_mini_json"


class TestInternlm(JsonCalls):
    name = "internlm"
    samples = (
        PLAIN,
        ToolSample(
            f"<|action_start|><|plugin|>\n{obj('get_weather', CITY, 'parameters')}<|action_end|>", calls=(MEANT,)
        ),
        ToolSample(
            f"Hm.<|action_start|> <|plugin|>{obj('get_weather', CITY)}<|action_end|>\n"
            f"<|action_start|><|plugin|>\n{obj('get.time-2', HARD, 'parameters')}\n<|action_end|>",
            content="Hm.",
            calls=(MEANT, HARD_MEANT),
        ),
    )
    malformed = (
        *(f"<|action_start|><|plugin|>{obj('f', broken)}<|action_end|>" for broken in BROKEN),
        "<|action_start|><|interpreter|>\nprint(1)<|action_end|>",
    )
    long = ToolSample(f"<|action_start|><|plugin|>{obj('get_weather', LONG)}<|action_end|>", calls=(LONG_MEANT,))


class TestInternS1(Short, TestInternlm):
    name = "interns1"


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
