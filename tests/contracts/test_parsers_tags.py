"""Parsers whose calls are tags or Python, and parsers of reasoning, through the suites of their kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from core.parsing.tags import TagFormat
from core.testing.contracts.reasoning_parser import ReasoningParserContract, ReasoningSample
from core.testing.contracts.tool_parser import ToolParserContract, ToolSample
from core.testing.contracts.tool_parser_streams import Parsed

Call = tuple[str, Mapping[str, Any]]
WEATHER: Call = ("get_weather", {"city": "Köln", "days": 3})
LONG: Call = ("get_weather", {"city": "long " * 50 + "name", "days": 3})
LONGER: Call = ("get_weather", {"days": 3, "city": 'very long "' * 100})


def written(form: TagFormat, *calls: Call, gap: str = "\n") -> str:
    """Calls in a format, as a model writes them."""
    tags = form.parameter
    texts = []
    for name, arguments in calls:
        parts = [gap.join(form.open) if len(form.open) > 1 else form.open[0]]
        parts[0] += name + form.name_close
        for key, value in arguments.items():
            text = value if isinstance(value, str) else json.dumps(value)
            wanted = ("string", "schema") if isinstance(value, str) else ("json", "schema")
            close = next(text for text, kind in tags.key_closes if kind in wanted)
            line = "\n" if tags.trim else ""
            middle = f"{gap}{tags.value_open}" if tags.value_open else ""
            parts.append(f"{tags.open}{key}{close}{middle}{line}{text}{line}{tags.close}")
        texts.append(gap.join([*parts, *form.close]))
    inside = gap.join(texts)
    return inside if form.section is None else f"{form.section[0]}{gap}{inside}{gap}{form.section[1]}"


class TagSuite(ToolParserContract):
    """Samples and malformed texts of a format follow from it."""

    arguments_as_they_come = True
    max_examples = 25

    def __init_subclass__(cls, form: TagFormat | None = None, gap: str = "\n", again: bool = False) -> None:
        """again: another name of what is tested more closely."""
        if form is None:
            return
        one, two = written(form, WEATHER, gap=gap), written(form, WEATHER, ("now", {}), gap=gap)
        close = form.parameter.close
        cls.samples = (
            ToolSample("No call, 1 < 2.\n", content="No call, 1 < 2.\n"),
            ToolSample(one, calls=(WEATHER,)),
            ToolSample(f"Let me look.\n\n{two}\n", content="Let me look.", calls=(WEATHER, ("now", {}))),
            *((ToolSample(written(form, LONG, gap=gap), calls=(LONG,)),) if not again else ()),
            ToolSample(
                written(form, ("f", {"a": {"b": ["</b>", 1.5, None]}, "c": "x < y"}), gap=gap),
                calls=(("f", {"a": {"b": ["</b>", 1.5, None]}, "c": "x < y"}),),
            ),
        )
        cls.long = ToolSample(written(form, LONGER, gap=gap), calls=(LONGER,))
        opening = form.section[0] if form.section else form.open[0]
        cls.malformed = (
            opening,
            one[: one.rindex(close)],  # the parameter is not closed
            one[: one.index(close)],
            one.replace("get_weather", "", 1),  # no name
            one.replace(form.parameter.open, f" stray {form.parameter.open}", 1),
            one.partition(form.close[-1])[0],  # the call is not closed
            one.replace("days", "city"),  # a key that comes twice
            "a < b, and <tool is no marker",
            f"{opening} is how calls begin",
        )


def _forms() -> Mapping[str, TagFormat]:
    from plugin_parser_deepseek import dsml_parsers as deepseek
    from plugin_parser_glm import tools as glm
    from plugin_parser_mimo import tools as mimo
    from plugin_parser_minimax import tools as minimax
    from plugin_parser_qwen3_coder import tools as qwen3_coder
    from plugin_parser_step3 import tools as step3

    return {
        "qwen3_coder": qwen3_coder.FORMAT,
        "step3": step3.STEP3,
        "step3p5": step3.STEP3P5,
        "mimo": mimo.FORMAT,
        "glm45": glm.GLM45,
        "glm47": glm.GLM47,
        "minimax": minimax.FORMAT,
        "deepseekv32": deepseek.V32,
    }


FORMS = _forms()


class TestQwen3Coder(TagSuite, form=FORMS["qwen3_coder"]):
    name = "qwen3_coder"


class TestQwen3Xml(TagSuite, form=FORMS["qwen3_coder"], again=True):
    name = "qwen3_xml"
    max_examples = 5


class TestNanbeige(TagSuite, form=FORMS["qwen3_coder"], again=True):
    name = "nanbeige"
    max_examples = 5


class TestQwen3CoderAtOnce(TagSuite, form=FORMS["qwen3_coder"]):
    """Nothing is held back, so malformed calls come out as far as they are well formed."""

    name = "qwen3_coder"
    settings = {"hold": 0}  # noqa: RUF012

    test_malformed_calls_come_back_as_text = None
    test_broken_off_samples = None


class TestQwen3CoderWhole(TagSuite, form=FORMS["qwen3_coder"]):
    """Everything is held back, so no broken call ever comes out."""

    name = "qwen3_coder"
    settings = {"hold": 1_000_000}  # noqa: RUF012
    arguments_as_they_come = False


class TestStep3(TagSuite, form=FORMS["step3"], gap=""):
    name = "step3"


class TestStep3p5(TagSuite, form=FORMS["step3p5"], again=True):
    name = "step3p5"
    max_examples = 5


class TestMimo(TagSuite, form=FORMS["mimo"]):
    name = "mimo"


class TestGlm(TagSuite, form=FORMS["glm45"], again=True):
    name = "glm"
    max_examples = 5


class TestGlm45(TagSuite, form=FORMS["glm45"]):
    name = "glm45"


class TestGlm47(TagSuite, form=FORMS["glm47"], gap=""):
    name = "glm47"


class TestMinimaxM2(TagSuite, form=FORMS["minimax"]):
    name = "minimax-m2"


class TestMinimaxM2Alias(TagSuite, form=FORMS["minimax"], again=True):
    name = "minimax_m2"
    max_examples = 5


class TestDeepSeekV32(TagSuite, form=FORMS["deepseekv32"]):
    name = "deepseekv32"


class TestDeepSeekV32Alias(TagSuite, form=FORMS["deepseekv32"], again=True):
    name = "deepseek_v32"
    max_examples = 5


class PythonSuite(ToolParserContract):
    long = ToolSample(f"[get_weather(days=3, city={LONGER[1]['city']!r})]", calls=(LONGER,))
    arguments_as_they_come = True
    calls_anywhere = False
    max_examples = 40
    samples = (
        ToolSample("No call: a[0] = [1, 2].", content="No call: a[0] = [1, 2]."),
        ToolSample('[get_weather(city="Köln", days=3)]', calls=(WEATHER,)),
        ToolSample("[get_weather(days=3, city='Köln'), now()]", calls=(WEATHER, ("now", {}))),
        ToolSample("Let me look.\n[now()]\nDone.", content="Let me look.\nDone.", calls=(("now", {}),)),
        ToolSample(f"[get_weather(city={LONG[1]['city']!r}, days=3)]", calls=(LONG,)),
        ToolSample(
            "[f(a={'b': ['</b>', 1.5, None, (True,)]}, c='it\\'s \\u00e9', d=-1_000, e=.5)]",
            calls=(("f", {"a": {"b": ["</b>", 1.5, None, [True]]}, "c": "it's é", "d": -1000, "e": 0.5}),),
        ),
    )
    malformed = (
        "[",
        "[]",
        "[get_weather]",
        "[get_weather(city)]",
        "[get_weather('Köln')]",
        "[get_weather(city='Köln')",
        "[get_weather(city='Köln', city='Bonn')]",
        "[get_weather(city=x)]",
        "[get_weather(city=f'{x}')]",
        "[get_weather(city=__import__('os'))]",
        "[get_weather(city='Köln') for _ in x]",
        "[get_weather(city='Köln'), oops]",
        "[1, 2]",
        "in prose [get_weather(city='Köln')]",
        "[f(a={1: 2})]",
        "[f(a=007)]",
        "[f(a=" + "[" * 60 + "]" * 60 + ")]",
    )


class TestPythonic(PythonSuite):
    name = "pythonic"


class TestLlama4Pythonic(PythonSuite):
    name = "llama4_pythonic"
    samples = (
        *PythonSuite.samples,
        ToolSample(
            'Now. <|python_start|>[get_weather(city="Köln", days=3)]<|python_end|>', content="Now.", calls=(WEATHER,)
        ),
    )
    malformed = (*PythonSuite.malformed, "<|python_start|>", "<|python_start|>print(1)<|python_end|>")


# Reasoning


class ThinkSuite(ReasoningParserContract):
    """Samples follow from the markers and from what else ends reasoning."""

    max_examples = 40

    def __init_subclass__(cls, also: str = "", always: bool = False) -> None:
        if not cls.markers:
            return
        opening, closing = cls.markers[:2]
        samples = [
            ReasoningSample(f"{opening}\nfour\n\nfive\n{closing}\n\n4\n", reasoning="four\n\nfive", content="4\n"),
            ReasoningSample(f"four{closing}4 <b>", reasoning="four", content="4 <b>", prompt_opens=True),
            ReasoningSample(f"\n{opening}four{closing}4", reasoning="four", content="4", prompt_opens=True),
            ReasoningSample("never closed ", reasoning="never closed", prompt_opens=True),
            ReasoningSample(f"{opening}\n\n{closing}\n\nYes.", content="Yes."),
            ReasoningSample(f"\njust text {closing[:-1]}", content=f"\njust text {closing[:-1]}"),
            ReasoningSample(f"no {opening}x{closing}", content=f"no {opening}x{closing}"),
        ]
        if also:
            samples.append(ReasoningSample(f"{opening}four\n{also}\nf", reasoning="four", content=f"{also}\nf"))
            samples.append(ReasoningSample(f"four{also}", reasoning="four", content=also, prompt_opens=True))
        cls.samples = samples
        cls.always = always

    always = False

    def test_it_says_whether_it_always_reasons(self) -> None:
        assert self.parser().always_reasons is self.always
        assert self.parser().end_marker == self.markers[1]


class TestStep3Reasoning(ThinkSuite, always=True):
    name = "step3"
    markers = ("<think>", "</think>")


class TestStep3p5Reasoning(ThinkSuite, always=True):
    name = "step3p5"
    markers = ("<think>", "</think>")


class TestMimoReasoning(ThinkSuite):
    name = "mimo"
    markers = ("<think>", "</think>")


class TestGlm45Reasoning(ThinkSuite, also="<tool_call>"):
    name = "glm45"
    markers = ("<think>", "</think>")


class TestMinimaxReasoning(ThinkSuite, always=True):
    name = "minimax"
    markers = ("<think>", "</think>")


class TestMinimaxM2Reasoning(ThinkSuite, always=True):
    name = "minimax_m2"
    markers = ("<think>", "</think>")


class AppendThink(ReasoningParserContract):
    markers = ("<think>", "</think>")
    prefix = "<think>"
    max_examples = 40
    samples: Sequence[ReasoningSample] = (
        ReasoningSample("four</think>\n4", content="<think>four</think>\n4", prompt_opens=True),
        ReasoningSample("\n<think>four</think>", content="\n<think>four</think>", prompt_opens=True),
        ReasoningSample("just text", content="just text"),
    )


class TestMinimaxAppendThink(AppendThink):
    name = "minimax-append-think"


class TestMinimaxM2AppendThink(AppendThink):
    name = "minimax_m2_append_think"


class TestQwen3Reasoning(ThinkSuite, also="<tool_call>"):
    name = "qwen3"
    markers = ("<think>", "</think>")


class TestQwen3ThinkingReasoning(ThinkSuite, also="<tool_call>", always=True):
    name = "qwen3-thinking"
    markers = ("<think>", "</think>")


class TestKimiReasoning(ThinkSuite):
    name = "kimi"
    markers = ("◁think▷", "◁/think▷")


class TestKimiK2Reasoning(ThinkSuite, also="<|tool_calls_section_begin|>"):
    name = "kimi_k2"
    markers = ("<think>", "</think>")


class TestMistralReasoning(ThinkSuite):
    name = "mistral"
    markers = ("[THINK]", "[/THINK]")


class TestNemotron3Reasoning(ThinkSuite, also="<tool_call>"):
    name = "nemotron_3"
    markers = ("<think>", "</think>")


class TestNemotronV3Reasoning(ThinkSuite, also="<tool_call>"):
    name = "nemotron_v3"
    markers = ("<think>", "</think>")


class TestGlm47Reasoning(ThinkSuite, also="<tool_call>"):
    name = "glm47"
    markers = ("<think>", "</think>")


class TestNanbeigeReasoning(ThinkSuite, also="<tool_call>"):
    name = "nanbeige"
    markers = ("<think>", "</think>")


class TestCohereReasoning(ThinkSuite, also="<|START_ACTION|>"):
    name = "cohere"
    markers = ("<|START_THINKING|>", "<|END_THINKING|>")


class TestCohereCommand3Reasoning(ThinkSuite, also="<|START_RESPONSE|>"):
    name = "cohere_command3"
    markers = ("<|START_THINKING|>", "<|END_THINKING|>")


class TestCohereCommand4Reasoning(ThinkSuite, also="<|START_TEXT|>"):
    name = "cohere_command4"
    markers = ("<|START_THINKING|>", "<|END_THINKING|>")


class TestNanoV3Reasoning(ThinkSuite, also="<tool_call>"):
    name = "nano-v3"
    markers = ("<think>", "</think>")


class TestNanoV3UnderscoreReasoning(ThinkSuite, also="<tool_call>"):
    name = "nano_v3"
    markers = ("<think>", "</think>")


class TestDeepSeekR1Reasoning(ThinkSuite, always=True):
    name = "deepseek-r1"
    markers = ("<think>", "</think>")


class TestDeepSeekR1AliasReasoning(ThinkSuite, always=True):
    name = "deepseek_r1"
    markers = ("<think>", "</think>")


class TestDeepSeekV3Reasoning(ThinkSuite):
    name = "deepseek-v3"
    markers = ("<think>", "</think>")


class TestDeepSeekV3AliasReasoning(ThinkSuite):
    name = "deepseek_v3"
    markers = ("<think>", "</think>")


class TestGraniteReasoning(ThinkSuite):
    name = "granite"
    markers = (
        "Here is my thought process:",
        "Here is my response:",
        "Here's my thought process:",
        "Here's my response:",
    )

    def test_other_spellings(self) -> None:
        text = "Here's my thought process:\nfour\nHere's my response:\n4"
        assert self.parsed([text], False) == self.parsed(list(text), False) == Parsed("4", "four")


class TestGraniteThinkingReasoning(ThinkSuite, also="<tool_call>"):
    name = "granite_thinking_parser"
    markers = ("<think>", "</think>")
