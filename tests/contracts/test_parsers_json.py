"""The suites of the tool parsers whose calls have JSON bodies. Names for the same parser are tested in short."""

from __future__ import annotations

from types import MappingProxyType

from core.testing.contracts.tool_parser import ToolSample
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
