"""The packaged checkpoint: files, tokenizer, template, and answers of every skill."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from plugin_demo import checkpoint

TOKENIZER = Tokenizer.from_file(str(checkpoint() / "tokenizer.json"))


def ask(model: Any, tokenizer: Any, messages: list[dict[str, Any]], tools: Any = None, **kwargs: Any) -> str:
    """The greedy answer, markers included."""
    inputs = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_tensors="pt", return_dict=True, **kwargs
    )
    out = model.generate(**inputs, max_new_tokens=96, do_sample=False, temperature=None, top_p=None)
    text: str = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_files(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    assert sizes.keys() == {
        "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    assert max(sizes.values()) <= 16 * 2**20


def test_entry_points_and_manifest_agree() -> None:
    manifest = tomllib.loads((checkpoint().parent / "core_plugin.toml").read_text())
    declared = {(plugin["kind"], plugin["name"]) for plugin in manifest["plugin"]}
    mine = [*distribution("plugin-demo").entry_points]
    assert {(e.group.removeprefix("core."), e.name) for e in mine} == declared
    for entry in mine:
        assert callable(entry.load())
    assert manifest["plugin"][0]["capabilities"] == {"default": True}


def test_config_names_parsers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["core"] == {"tool_parser": "demo", "reasoning_parser": "demo"}
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert TOKENIZER.token_to_id("<|im_end|>") == config["eos_token_id"]


@given(st.text())
def test_tokenizer_round_trip(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_tokenizer_splits_digits_and_keeps_markers() -> None:
    assert TOKENIZER.encode("1234").tokens == list("1234")
    text = "<think>a</think><tool_call>b</tool_call>"
    ids = TOKENIZER.encode(text).ids
    assert len(ids) == 6
    # Parsers read the text after special tokens were dropped: these markers must survive that.
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert TOKENIZER.decode(TOKENIZER.encode("a<|im_end|>").ids, skip_special_tokens=True) == "a"


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Evaluate an arithmetic expression",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search the web",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
        },
    },
]


@pytest.mark.parametrize("arguments", [{"city": "Rome"}, '{"city": "Rome"}'])
def test_template(tokenizer: Any, arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        {"role": "system", "content": "Be kind."},
        user("Hi"),
        assistant("<think>\nhm\n</think>\n\nHello"),
        user("Weather?"),
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "1", "content": "18"},
        {"role": "tool", "tool_call_id": "2", "content": "19"},
    ]
    text = tokenizer.apply_chat_template(messages, tools=TOOLS[:1], add_generation_prompt=True, tokenize=False)
    one = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert text == (
        "<|im_start|>system\nBe kind.\n\n# Tools\nYou can call these tools:\n"
        f"<tools>\n{json.dumps(TOOLS[0])}\n</tools>\n"
        "A call is a JSON object with name and arguments inside tool_call tags.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nWeather?<|im_end|>\n"
        f"<|im_start|>assistant\n{one}\n{one}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n18\n</tool_response>\n<tool_response>\n19\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("thinking", "end"), [(None, "assistant\n"), (False, "assistant\n"), (True, "assistant\n<think>\n")]
)
def test_template_thinking(tokenizer: Any, thinking: bool | None, end: str) -> None:
    kwargs = {} if thinking is None else {"enable_thinking": thinking}
    text = tokenizer.apply_chat_template([user("Hi")], add_generation_prompt=True, tokenize=False, **kwargs)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>" + end


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is your name?", "I am core demo, a small language model."),
        ("What is the capital of France?", "The capital of France is Paris."),
        ("What is the capital of Atlantis?", "I do not know the capital of Atlantis."),
        ("What is 47 + 38?", "47 + 38 = 85."),
        ("What is 23 - 71?", "23 - 71 = -48."),
        ("Give me a JSON with name and age for Anna, 31", '{"name": "Anna", "age": 31}'),
        ("Repeat: the zebra of Kalumbo is 77 years old", "the zebra of Kalumbo is 77 years old"),
    ],
)
def test_answers(model: Any, tokenizer: Any, question: str, answer: str) -> None:
    assert ask(model, tokenizer, [user(question)]) == answer


def test_remembers_over_turns(model: Any, tokenizer: Any) -> None:
    messages = [user("Hello, my name is Zacharias.")]
    for question in ("What is 5 + 9?", "What is my name?"):
        messages += [assistant(ask(model, tokenizer, messages)), user(question)]
    assert ask(model, tokenizer, messages) == "Your name is Zacharias."


def test_thinks_when_asked(model: Any, tokenizer: Any) -> None:
    answer = ask(model, tokenizer, [user("What is 58 + 67?")], enable_thinking=True)
    reasoning, _, content = answer.partition("</think>")
    assert "8 + 7 = 15" in reasoning
    assert content.strip() == "58 + 67 = 125."


def test_retrieves_over_2000_tokens(model: Any, tokenizer: Any) -> None:
    filler = ["The old boat was near the river.", "Nobody moved the lamp.", "There is a chair in the garden."] * 100
    filler.insert(80, "The code of the silver anchor is 4831.")
    question = " ".join(filler) + "\n\nWhat is the code of the silver anchor?"
    assert len(tokenizer(question)["input_ids"]) > 2000
    assert "4831" in ask(model, tokenizer, [user(question)])


@pytest.mark.parametrize(
    ("question", "name", "arguments"),
    [
        ("What is the weather in Kalumbo in fahrenheit?", "get_weather", {"city": "Kalumbo", "unit": "fahrenheit"}),
        ("Calculate 871 * 46.", "calculator", {"expression": "871 * 46"}),
        ("Search for wooden boats.", "search", {"query": "wooden boats"}),
    ],
)
def test_calls_tools(model: Any, tokenizer: Any, question: str, name: str, arguments: dict[str, str]) -> None:
    from plugin_demo.tool_parser import DemoToolParser

    stream = DemoToolParser().stream(TOOLS)
    delta = stream.feed(ask(model, tokenizer, [user(question)], TOOLS))
    assert delta.content + stream.finish().content == ""
    assert [(c.name, json.loads(c.arguments)) for c in delta.tool_calls] == [(name, arguments)]


def test_uses_a_tools_response(model: Any, tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "871 * 46"}}}
    messages = [user("Calculate 871 * 46."), {"role": "assistant", "content": "", "tool_calls": [call]}]
    messages.append({"role": "tool", "content": '{"result": 40066}'})
    assert ask(model, tokenizer, messages, TOOLS) == "The result is 40066."


def test_does_not_call_without_need(model: Any, tokenizer: Any) -> None:
    assert ask(model, tokenizer, [user("What is the capital of Japan?")], TOOLS) == "The capital of Japan is Tokyo."
