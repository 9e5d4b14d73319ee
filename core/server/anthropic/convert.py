"""Anthropic's conversation in core's shapes. Every mistake is a RequestError that names its place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from core.frontend.chat import ChatRequest
from core.interfaces.errors import RequestError
from core.server import reading
from core.server.anthropic.schemas import ConversationFields, ToolChoice
from core.server.thinking import thinking_variables

ROLES = ("user", "assistant", "system")
# What a client may wrap arguments in that are no JSON object, and what they are given back in.
INVALID_JSON = "INVALID_JSON"


def chat_request(body: ConversationFields) -> ChatRequest:
    """The conversation. A last message of the assistant is gone on with. Raises RequestError."""
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": reading.texts("system", body.system)})
    names: dict[str, str] = {}  # of tools, by the ids of their calls
    for index, message in enumerate(body.messages):
        messages += _messages(f"messages[{index}]", message, names)
    if not body.messages:
        raise RequestError("messages is empty; give at least one", param="messages")
    choice = body.tool_choice
    return ChatRequest(
        messages=_merged(messages),
        tools=_tools(body.tools or ()),
        tool_choice=_tool_choice(choice, body),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        continue_final_message=_goes_on(messages, len(body.messages) - 1),
        template_variables={**_thinking(body), **(body.chat_template_kwargs or {})},
    )


def response_format(body: ConversationFields) -> dict[str, Any] | None:
    """`output_config.format` as OpenAI's response_format."""
    wanted = body.output_config.format if body.output_config else None
    if wanted is None:
        return None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted.json_schema, "strict": True}}


def call_input(arguments: str) -> dict[str, Any]:
    """A call's arguments as the object that the protocol wants; what is none is kept inside one."""
    try:
        made = json.loads(arguments or "{}")
    except ValueError:
        made = None
    return made if isinstance(made, dict) else {INVALID_JSON: arguments}


def _thinking(body: ConversationFields) -> dict[str, Any]:
    effort = body.output_config.effort if body.output_config else None
    kind = body.thinking.type if body.thinking else "disabled"  # the protocol's default
    # Adaptive leaves the choice to the model: a template that can be told to think is.
    return thinking_variables(kind != "disabled", effort)


def _tools(tools: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    made: list[dict[str, Any]] = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if tool.get("type") not in (None, "custom"):
            raise reading.unsupported(where, tool["type"], 'only tools of your own ("custom") are supported')
        schema = reading.mapping(f"{where}.input_schema", tool.get("input_schema"))
        function: dict[str, Any] = {"name": reading.name(where, tool), "parameters": dict(schema)}
        if tool.get("description") is not None:
            function["description"] = reading.string(where, tool, "description")
        if tool.get("strict") is not None:
            function["strict"] = tool["strict"]
        made.append({"type": "function", "function": function})
    return tuple(made)


def _tool_choice(choice: ToolChoice | None, body: ConversationFields) -> Any:
    if choice is None:
        return None
    if choice.type in ("auto", "none"):
        return choice.type
    if not body.tools:
        raise RequestError(f"tool_choice is {choice.type!r}, and there are no tools", param="tool_choice")
    if choice.type == "any":
        return "required"
    if choice.name not in [tool.get("name") for tool in body.tools]:
        raise RequestError(f"tool_choice.name is {choice.name!r}; no tool has this name", param="tool_choice.name")
    return {"type": "function", "function": {"name": choice.name}}


def _messages(where: str, message: Mapping[str, Any], names: dict[str, str]) -> list[dict[str, Any]]:
    """One message as several of core's: a tool's result is a message of its own."""
    role = reading.one_of(f"{where}.role", message.get("role"), ROLES)
    content = message.get("content")
    if content is None:
        raise RequestError(f"{where}.content is missing", param=f"{where}.content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if role == "assistant":
        return [_assistant(f"{where}.content", content, names)]
    if role == "system":
        return [{"role": role, "content": reading.texts(f"{where}.content", content)}]
    made: list[dict[str, Any]] = []

    def take(place: str, block: Mapping[str, Any]) -> None:
        if block.get("type") == "tool_result":
            made.append(_tool_result(place, block, names))
        elif block.get("type") == "text":
            made.append({"role": "user", "content": reading.string(place, block, "text")})
        else:
            raise reading.unsupported(place, block.get("type"), "this model takes text and tool_result from the user")

    reading.each(f"{where}.content", content, take)
    return made


def _tool_result(place: str, block: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    call = reading.string(place, block, "tool_use_id")
    if call not in names:
        raise RequestError(
            f"{place}.tool_use_id is {call!r}; no tool_use before it has this id", param=f"{place}.tool_use_id"
        )
    content = block.get("content")
    text = "" if content is None else reading.texts(f"{place}.content", content)
    # Chat templates know no mark for a failure; it has to be in the text.
    text = f"Error: {text}" if block.get("is_error") is True else text
    return {"role": "tool", "tool_call_id": call, "name": names[call], "content": text}


def _assistant(where: str, content: Any, names: dict[str, str]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []

    def take(place: str, block: Mapping[str, Any]) -> None:
        match block.get("type"):
            case "text":
                texts.append(reading.string(place, block, "text"))
            case "thinking":
                thoughts.append(reading.string(place, block, "thinking"))
            case "redacted_thinking":
                pass  # made elsewhere, and only its maker can read it
            case "tool_use":
                call, name = reading.string(place, block, "id"), reading.name(place, block)
                names[call] = name
                arguments = dict(reading.mapping(f"{place}.input", block.get("input")))
                calls.append({"id": call, "type": "function", "function": {"name": name, "arguments": arguments}})
            case kind:
                raise reading.unsupported(place, kind, "the assistant gives text, thinking and tool_use")

    reading.each(where, content, take)
    made: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if any(thoughts):
        made["reasoning_content"] = "\n".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    return made


def _merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Texts of one role in a row are one turn, as the protocol has it."""
    made: list[dict[str, Any]] = []
    for message in messages:
        plain = set(message) == {"role", "content"}
        if plain and made and set(made[-1]) == {"role", "content"} and made[-1]["role"] == message["role"]:
            made[-1] = {**message, "content": f"{made[-1]['content']}\n{message['content']}"}
        else:
            made.append(message)
    return made


def _goes_on(messages: list[dict[str, Any]], last: int) -> bool:
    if not messages or messages[-1]["role"] != "assistant":
        return False
    if messages[-1].get("tool_calls"):
        where = f"messages[{last}]"
        raise RequestError(f"{where} calls a tool; give its result in a message of the user", param=where)
    return True
