"""What models' chat templates write of an assistant's calls is read back as those calls.

The prompt is the conversation without the last turn; what the model would write is what the template adds for it, up to
the token that stops it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest

from core.interfaces.parsers import ParsedDelta, ParserStream
from core.registry.catalog import Catalog
from core.testing.contracts.tool_parser_streams import Parsed, all_cuts, collect

TEMPLATES = Path(__file__).parent / "templates"
CALLS = (
    ("get_weather", {"city": 'Köln, "am Rhein"', "days": 3, "exact": True, "near": None}),
    ("send", {"to": ["a", "b"], "text": "</tool_call> {x} \\ \n```", "options": {"n": -1.5, "deep": {"x": []}}}),
)


def render(template: str, messages: list[dict[str, Any]], prompt: bool) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.ChainableUndefined)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    source = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(messages=messages, add_generation_prompt=prompt)


def turn(template: str, message: dict[str, Any], stop: str) -> str:
    """What the model writes for `message`, without the stop token."""
    question = [{"role": "user", "content": "What now?"}]
    prompt = render(template, question, True)
    whole = render(template, [*question, {"role": "assistant", **message}], False)
    assert whole.startswith(prompt)
    text, stopped, _ = whole[len(prompt) :].rpartition(stop)
    assert stopped
    return text


def message(calls: tuple[tuple[str, Any], ...], content: str | None = None, reasoning: str = "") -> dict[str, Any]:
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return {
        "content": content,
        "reasoning_content": reasoning,
        "tool_calls": [
            {"id": f"functions.{function['name']}:{index}", "type": "function", "function": function}
            for index, function in enumerate(functions)
        ],
    }


def parser(name: str, kind: str = "tool_parsers") -> Any:
    return Catalog.scan().load(kind, name)()


def through(pieces: list[str], *streams: ParserStream) -> Parsed:
    """A text through a reasoning parser, if there are two streams, and a tool parser."""
    results = []
    for piece, last in [*((piece, False) for piece in pieces), ("", True)]:
        out = ParsedDelta(content=piece)
        for stream in streams:
            parts = [stream.feed(out.content), *([stream.finish()] if last else [])]
            out = ParsedDelta(
                content="".join(part.content for part in parts),
                reasoning=out.reasoning + "".join(part.reasoning for part in parts),
                tool_calls=[call for part in parts for call in part.tool_calls],
            )
        results.append(out)
    return collect(results)


def meaning(parsed: Parsed) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments in parsed.calls]


@pytest.mark.parametrize(
    ("template", "name", "stop", "num_calls", "with_text"),
    [
        ("qwen25", "hermes", "<|im_end|>", 2, True),
        ("qwen25", "qwen25", "<|im_end|>", 2, True),
        ("qwen25", "granite4", "<|im_end|>", 2, True),  # it writes the same between other turn markers
        ("llama31", "llama3", "<|eot_id|>", 1, False),
        ("mistral_small31", "mistral", "</s>", 2, False),
        ("ministral3", "mistral", "</s>", 2, True),
        ("deepseek_v3", "deepseekv3", "<｜end▁of▁sentence｜>", 2, True),
        ("deepseek_v31_calls", "deepseekv31", "<｜end▁of▁sentence｜>", 2, True),
        ("kimi_k2", "kimi_k2", "<|im_end|>", 2, True),
        ("gigachat3", "gigachat3", "<|message_sep|>", 1, False),
        ("command_r7b", "cohere", "<|END_OF_TURN_TOKEN|>", 2, False),
        ("phi4_mini", "phi4", "<|end|>", 2, True),
    ],
)
def test_calls_that_a_template_writes_are_read_back(
    template: str, name: str, stop: str, num_calls: int, with_text: bool
) -> None:
    found = parser(name)
    for number in range(1, num_calls + 1):
        for content in [None, "Let me look."][: 1 + with_text]:
            calls = CALLS[-number:]
            text = turn(template, message(calls, content), stop)
            whole = through([text], found.stream([]))
            assert meaning(whole) == list(calls), text
            expected = "<|message_sep|>" if template == "gigachat3" else content or ""
            assert whole.content == expected, text
            for pieces in all_cuts(text, num_random=5):
                assert through(pieces, found.stream([])) == whole


def test_text_before_a_call_of_gigachat_stays_with_the_token_that_core_takes_out() -> None:
    text = turn("gigachat3", message(CALLS[:1], "Let me look."), "<|message_sep|>")
    result = through([text], parser("gigachat3").stream([]))
    assert (result.content, meaning(result)) == ("Let me look.<|message_sep|>", [CALLS[0]])


def test_harmony_turns_are_reasoning_calls_and_content() -> None:
    reasoning, tools = parser("gpt-oss", "reasoning_parsers"), parser("gpt-oss")
    question, calls = "Where?", CALLS[1:]
    call = turn("gpt_oss", message(calls, None, question), "<|call|>")
    answer = turn("gpt_oss", {"content": "There.", "reasoning_content": question}, "<|return|>")
    for text, content, wanted in ((call, "", list(calls)), (answer, "There.", [])):
        for pieces in all_cuts(text, num_random=5):
            result = through(pieces, reasoning.stream(False), tools.stream([]))
            assert (result.reasoning, result.content, meaning(result)) == (question, content, wanted)


@pytest.mark.parametrize(("name", "pattern"), [("kimi_k2", r"functions\.now:3"), ("mistral", "[a-zA-Z0-9]{9}")])
def test_ids_have_the_form_that_the_templates_want(name: str, pattern: str) -> None:
    """Mistral's templates refuse others, Kimi's write them as they are, and its models were trained on these."""
    assert re.fullmatch(pattern, parser(name).call_id("now", 3))
