"""The conversation in core's shapes. Every mistake is a RequestError that names its place."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from core.frontend.chat import ChatRequest
from core.interfaces.errors import RequestError
from core.server import reading
from core.server.responses.schemas import ResponsesFields
from core.server.thinking import thinking_variables

ROLES = ("user", "assistant", "system", "developer")
_PARTS = ("input_text", "output_text", "text", "refusal")
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
Item = Mapping[str, Any]


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}_{uuid.uuid4().hex}"


def input_items(given: str | Sequence[Item]) -> list[dict[str, Any]]:
    """The request's input as items with types and ids."""
    if isinstance(given, str):
        given = [{"role": "user", "content": [{"type": "input_text", "text": given}]}]
    made: list[dict[str, Any]] = []
    for item in given:
        kind = item.get("type") or "message"
        made.append({**item, "type": kind, "id": item.get("id") or new_id(_PREFIXES.get(str(kind), "item"))})
    return made


def chat_request(body: ResponsesFields, before: Sequence[Item], own: Sequence[Item]) -> ChatRequest:
    """The conversation. before: items of earlier responses. own: the request's. Raises RequestError."""
    builder = _Builder()
    if body.instructions:
        builder.messages.append({"role": "system", "content": body.instructions})
    for item in before:
        builder.add("previous_response_id", item)
    for index, item in enumerate(own):
        builder.add(f"input[{index}]", item)
    if not own:
        raise RequestError("input is empty", param="input")
    tools = _tools(body.tools or ())
    choice, allowed = _tool_choice(body.tool_choice, tools)
    return ChatRequest(
        messages=builder.finish(),
        tools=allowed,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        template_variables={**_thinking(body), **(body.chat_template_kwargs or {})},
    )


def response_format(body: ResponsesFields) -> dict[str, Any] | None:
    """`text.format` as OpenAI chat's response_format."""
    wanted = body.text.format if body.text else None
    if wanted is None:
        return None
    kind = reading.one_of("text.format.type", wanted.get("type"), ("text", "json_object", "json_schema"))
    if kind != "json_schema":
        return {"type": kind}
    inner: dict[str, Any] = {
        "name": reading.name("text.format", wanted),
        "schema": dict(reading.mapping("text.format.schema", wanted.get("schema"))),
    }
    inner |= {key: wanted[key] for key in ("description", "strict") if wanted.get(key) is not None}
    return {"type": kind, "json_schema": inner}


def _thinking(body: ResponsesFields) -> dict[str, Any]:
    effort = body.reasoning.effort if body.reasoning else None
    if effort is None:
        return {}
    return thinking_variables(False) if effort == "none" else thinking_variables(True, effort)


def _tools(tools: Sequence[Item]) -> tuple[dict[str, Any], ...]:
    made: list[dict[str, Any]] = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if tool.get("type") != "function":
            raise reading.unsupported(where, tool.get("type"), 'only tools of your own ("function") are supported')
        function: dict[str, Any] = {"name": reading.name(where, tool)}
        if tool.get("parameters") is not None:
            function["parameters"] = dict(reading.mapping(f"{where}.parameters", tool["parameters"]))
        if tool.get("description") is not None:
            function["description"] = reading.string(where, tool, "description")
        if tool.get("strict") is not None:
            function["strict"] = tool["strict"]
        made.append({"type": "function", "function": function})
    return tuple(made)


def _tool_choice(choice: Any, tools: tuple[dict[str, Any], ...]) -> tuple[Any, tuple[dict[str, Any], ...]]:
    """(the choice in chat's shape, the tools that may be called)."""
    if choice is None or isinstance(choice, str):
        return choice and reading.one_of("tool_choice", choice, ("auto", "none", "required")), tools
    named = {tool["function"]["name"]: tool for tool in tools}
    kind = reading.one_of("tool_choice.type", choice.get("type"), ("function", "allowed_tools"))
    if kind == "function":
        name = _known("tool_choice", choice, named)
        return {"type": "function", "function": {"name": name}}, tools
    mode = reading.one_of("tool_choice.mode", choice.get("mode"), ("auto", "required"))
    allowed: list[str] = []
    reading.each(
        "tool_choice.tools", choice.get("tools"), lambda place, tool: allowed.append(_known(place, tool, named))
    )
    return mode, tuple(named[name] for name in allowed)


def _known(where: str, holder: Item, tools: Mapping[str, Any]) -> str:
    name = reading.name(where, holder)
    if name not in tools:
        raise RequestError(f"{where}.name is {name!r}; no tool has this name", param=f"{where}.name")
    return name


class _Builder:
    """Items one after another; what the assistant said, thought and called in a row becomes one message."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._thoughts: list[str] = []
        self._names: dict[str, str] = {}  # of tools, by the ids of their calls

    def add(self, where: str, item: Item) -> None:
        """The next item, which stands at `where`. Raises RequestError."""
        match item.get("type"):
            case "message":
                self._message(where, item)
            case "function_call":
                self._call(where, item)
            case "function_call_output":
                self._result(where, item)
            case "reasoning":
                self._reasoning(where, item)
            case kind:
                raise reading.unsupported(where, kind, f"the items supported are {', '.join(_PREFIXES)}")

    def finish(self) -> list[dict[str, Any]]:
        """The messages. Several system messages at the beginning are one: templates know one."""
        self._leave_thoughts()
        made = self.messages
        while len(made) > 1 and all(message["role"] in ("system", "developer") for message in made[:2]):
            made = [{**made[0], "content": f"{made[0]['content']}\n\n{made[1]['content']}"}, *made[2:]]
        return made

    def _message(self, where: str, item: Item) -> None:
        role = reading.one_of(f"{where}.role", item.get("role"), ROLES)
        if item.get("content") is None:
            raise RequestError(f"{where}.content is missing", param=f"{where}.content")
        text = reading.texts(f"{where}.content", item["content"], _PARTS)
        if role == "assistant":
            self._assistant()["content"] = text
        else:
            self._leave_thoughts()
            self.messages.append({"role": role, "content": text})

    def _call(self, where: str, item: Item) -> None:
        call_id, name = reading.string(where, item, "call_id"), reading.name(where, item)
        self._names[call_id] = name
        function = {"name": name, "arguments": reading.string(where, item, "arguments")}
        last = self.messages[-1] if self.messages else None
        message = last if last is not None and last["role"] == "assistant" and not self._thoughts else self._assistant()
        message.setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})

    def _result(self, where: str, item: Item) -> None:
        call_id = reading.string(where, item, "call_id")
        if call_id not in self._names:
            raise RequestError(
                f"{where}.call_id is {call_id!r}; no function_call before it has this id", param=f"{where}.call_id"
            )
        if item.get("output") is None:
            raise RequestError(f"{where}.output is missing", param=f"{where}.output")
        text = reading.texts(f"{where}.output", item["output"], _PARTS)
        self._leave_thoughts()
        name = self._names[call_id]
        self.messages.append({"role": "tool", "tool_call_id": call_id, "name": name, "content": text})

    def _reasoning(self, where: str, item: Item) -> None:
        """The content, else the summary. An encrypted one was made elsewhere, and only its maker can read it."""
        for name, kind in (("content", "reasoning_text"), ("summary", "summary_text")):
            if item.get(name):
                self._thoughts.append(reading.texts(f"{where}.{name}", item[name], (kind,)))
                return

    def _assistant(self) -> dict[str, Any]:
        """A new message of the assistant, with what was thought before it."""
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        if self._thoughts:
            message["reasoning_content"] = "\n".join(self._thoughts)
            self._thoughts = []
        self.messages.append(message)
        return message

    def _leave_thoughts(self) -> None:
        """Thoughts that nothing came of are a message of their own."""
        if self._thoughts:
            self._assistant()
