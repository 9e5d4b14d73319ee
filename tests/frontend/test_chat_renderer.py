"""Messages to prompts: normalisation, roles, tools, and where reasoning begins."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from made_tokenizers import byte_level_folder
from tiny_parsers import CallParser, ThinkParser

from core.frontend.chat import MAX_OPENING_CHARACTERS, MAX_OPENINGS, ChatRenderer, ChatRequest, check_messages
from core.frontend.parameters import generation_defaults
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import RequestError
from core.interfaces.parsers import ParserStream

HI = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(scope="module")
def renderer(byte_level: Path) -> ChatRenderer:
    return ChatRenderer(Tokenizer.load(byte_level), CallParser(), ThinkParser())


def test_prompt_ids_have_no_second_begin_of_text(metaspace: Path) -> None:
    tokenizer = Tokenizer.load(metaspace)
    prompt = ChatRenderer(tokenizer).prepare_now(ChatRequest([HI]))
    assert prompt.token_ids.count(1) == 1  # the template writes it, so encoding must not


def test_text_parts_are_joined() -> None:
    (message,) = check_messages([{"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]}])
    assert message["content"] == "a\nb"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"a": 1}', {"a": 1}), ("", ""), ("{broken", "{broken"), ({"a": 1}, {"a": 1}), (None, {}), ("[1]", "[1]")],
)
def test_tool_call_arguments_are_opened(arguments: Any, expected: Any) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    (message,) = check_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": expected}
    assert message["content"] == ""


PICKY = (
    "{% for m in messages %}{% for c in m.tool_calls or () %}"
    "{% if c.id is not defined or c.id|length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
    "{{ c.id }}={{ c.function.name }};{% endfor %}"
    "{% if m.role == 'tool' %}{{ m.tool_call_id }}->{{ m.content }};{% endif %}{% endfor %}"
)


class Picky(CallParser):
    def call_id(self, name: str, number: int) -> str:
        return f"{name}-{number:07d}"


@pytest.mark.parametrize("ids", [("call_0123456789abcdef01234567", "toolu_1"), ("x", "x"), (None, None)])
def test_ids_are_written_as_the_template_wants_them(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    """Whatever ids a client has, calls and results agree, and the client's messages stay as they are."""
    tokenizer = Tokenizer.load(byte_level_folder(tmp_path, chat_template=PICKY))
    messages: list[dict[str, Any]] = [HI]
    for number, call_id in enumerate(ids):
        call = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}
        call = {key: value for key, value in call.items() if value is not None}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": call_id, "content": f"r{number}"})
    before = copy.deepcopy(messages)
    chat = ChatRequest(messages, tools=[TOOL])
    expected = "f-0000000=f;f-0000000->r0;f-0000001=f;f-0000001->r1;"
    assert ChatRenderer(tokenizer, Picky()).render(chat) == expected
    assert messages == before
    with pytest.raises(RequestError, match="nine letters"):
        ChatRenderer(tokenizer, CallParser()).render(chat)


def test_the_callers_messages_are_left_alone(renderer: ChatRenderer) -> None:
    messages = [{"role": "developer", "content": "x", "name": None}, {**HI, "reasoning": "r"}]
    copy = [dict(message) for message in messages]
    renderer.render(ChatRequest(messages))
    assert messages == copy


def test_developer_is_system_where_the_template_does_not_know_it(tmp_path: Path, renderer: ChatRenderer) -> None:
    chat = ChatRequest([{"role": "developer", "content": "x"}, HI])
    assert "<|im_start|>system\nx" in renderer.render(chat)
    knows = "{% for m in messages %}{{ m.role }},{% endfor %}{# developer #}"
    other = ChatRenderer(Tokenizer.load(byte_level_folder(tmp_path, chat_template=knows)))
    assert other.render(chat) == "developer,user,"


@pytest.mark.parametrize(
    ("last", "variables", "going_on", "opens"),
    [
        (HI, {}, False, False),
        (HI, {"open_thinking": True}, False, True),
        ({"role": "user", "content": "<think>"}, {}, False, False),  # what a user writes decides nothing
        ({"role": "assistant", "content": "<think>hm"}, {}, True, True),
        ({"role": "assistant", "content": "<think>hm</think>so"}, {}, True, False),
        ({"role": "assistant", "content": "so"}, {}, True, False),
    ],
)
def test_where_reasoning_begins(
    renderer: ChatRenderer, last: dict, variables: dict, going_on: bool, opens: bool
) -> None:
    request = ChatRequest([HI, last], template_variables=variables, continue_final_message=going_on)
    assert renderer.prepare_now(request).opens_reasoning is opens


def test_where_reasoning_begins_is_asked_once_for_what_templates_write(byte_level: Path) -> None:
    class Counting(ThinkParser):
        num_asked = 0

        def stream(self, prompt_opens_reasoning: bool) -> ParserStream:
            self.num_asked += 1
            return super().stream(prompt_opens_reasoning)

    parser = Counting()
    renderer = ChatRenderer(Tokenizer.load(byte_level), reasoning_parser=parser)
    for opens in (False, True):
        asked = [ChatRequest([{**HI, "content": text}], template_variables={"open_thinking": opens}) for text in "ab"]
        assert renderer.prepare_now(asked[0]).opens_reasoning is opens
        before = parser.num_asked
        assert before
        assert renderer.prepare_now(asked[1]).opens_reasoning is opens
        assert parser.num_asked == before
    kept = len(renderer._openings)
    for number in range(3):
        own = {"role": "assistant", "content": f"<think>{number}"}
        assert renderer.prepare_now(ChatRequest([HI, own], continue_final_message=True)).opens_reasoning
    assert len(renderer._openings) == kept  # texts of clients are not collected


def test_few_and_short_ends_of_prompts_are_kept(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ end }}{% endif %}"
    renderer = ChatRenderer(
        Tokenizer.load(byte_level_folder(tmp_path, chat_template=template)), reasoning_parser=ThinkParser()
    )
    for number in range(2 * MAX_OPENINGS + 2):
        opens, blanks = number % 2 == 1, " " * (number % 3 * MAX_OPENING_CHARACTERS)
        request = ChatRequest([HI], template_variables={"end": f"{number}:{blanks}{'<think>' * opens}"})
        assert renderer.prepare_now(request).opens_reasoning is opens
        assert len(renderer._openings) <= MAX_OPENINGS
        assert max(map(len, renderer._openings)) <= MAX_OPENING_CHARACTERS


def test_tools_without_a_parser_are_shown_to_the_model_only(byte_level: Path) -> None:
    plain = ChatRenderer(Tokenizer.load(byte_level))
    prompt = plain.prepare_now(ChatRequest([HI], tools=[TOOL]))
    assert "You may call" in prompt.text
    assert prompt.tools == ()


def test_continuing_needs_the_assistants_message(renderer: ChatRenderer) -> None:
    with pytest.raises(RequestError, match="last message of the assistant"):
        renderer.render(ChatRequest([HI], continue_final_message=True))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 20, "do_sample": True, "eos_token_id": 1, "max_length": 20},
         {"temperature": 0.6, "top_p": 0.9, "top_k": 20}),
        ({"top_k": 0, "repetition_penalty": None}, {"top_k": -1}),
        ({"do_sample": False, "top_k": 50, "repetition_penalty": 1.1}, {"temperature": 0.0, "repetition_penalty": 1.1}),
    ],
)  # fmt: skip
def test_recommended_sampling(config: dict, expected: dict) -> None:
    assert generation_defaults(config) == expected


def test_recommended_sampling_out_of_range() -> None:
    with pytest.raises(RequestError, match=r"generation_config\.json: temperature"):
        generation_defaults({"temperature": -2})


async def test_many_messages_are_rendered_aside_and_too_many_are_refused() -> None:
    from core.frontend.chat import INLINE_MESSAGES
    from core.testing.byte_codec import byte_tokenizer

    renderer = ChatRenderer(byte_tokenizer())
    renderer.tokenizer.limit(1000)
    chat = [{"role": "user", "content": "a"}] * (INLINE_MESSAGES + 1)
    assert (await renderer.prepare(ChatRequest(chat))).text == renderer.render(ChatRequest(chat))
    with pytest.raises(RequestError, match="1001 messages; the context has 1000 tokens") as caught:
        await renderer.prepare(ChatRequest([{"role": "user", "content": ""}] * 1001))
    assert caught.value.param == "messages"
