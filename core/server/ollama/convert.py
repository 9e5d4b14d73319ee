"""Ollama's conversation and options in core's shapes. Every mistake is a RequestError that names its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.frontend.chat import ChatRequest
from core.frontend.parameters import Dialect, spellings
from core.interfaces.errors import RequestError
from core.server import reading
from core.server.ollama.schemas import ChatBody, GenerateBody, GenerationBody
from core.server.thinking import thinking_variables

ROLES = ("system", "user", "assistant", "tool")
LATEST = ":latest"
# How a model is loaded, which this server has done, and the tuning of a sampler that is refused: they change nothing.
IDLE_OPTIONS = frozenset(
    {
        "num_ctx", "num_batch", "num_gpu", "main_gpu", "low_vram", "num_thread", "num_keep", "numa", "use_mmap",
        "use_mlock", "vocab_only", "mirostat_tau", "mirostat_eta", "f16_kv", "logits_all", "embedding_only",
    }
)  # fmt: skip
# Option -> the value that changes nothing; others would, and are not supported.
_NEUTRAL: dict[str, Any] = {"mirostat": 0, "tfs_z": 1, "typical_p": 1, "penalize_newline": True}

OPTIONS = frozenset({*spellings(Dialect.OLLAMA), *IDLE_OPTIONS, *_NEUTRAL, "repeat_last_n"})


def sampling_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by the parameter table's names for this protocol. Raises RequestError for what is not supported."""
    given = {name: value for name, value in options.items() if name not in IDLE_OPTIONS and value is not None}
    for name, neutral in _NEUTRAL.items():
        value = given.pop(name, neutral)
        if value != neutral:
            raise _unsupported(f"options.{name} is {value!r}; only {neutral!r} is supported", f"options.{name}")
    window = given.pop("repeat_last_n", -1)
    if window != -1 and given.get("repeat_penalty", 1) != 1:
        told = f"options.repeat_last_n is {window!r}; repeat_penalty looks at all tokens (-1)"
        raise _unsupported(told, "options.repeat_last_n")
    for name in ("num_predict", "seed"):  # below zero: no limit, and a seed of the server's choice
        if isinstance(given.get(name), int) and given[name] < 0:
            del given[name]
    if given.get("top_k") == 0:
        given["top_k"] = -1
    return given


def served_name(name: str, own: str) -> str:
    """`name` without the tag that clients put behind names that have none."""
    return name.removesuffix(LATEST) if name.endswith(LATEST) and not own.endswith(LATEST) else name


def response_format(body: GenerationBody) -> dict[str, Any] | None:
    """`format` as OpenAI's response_format."""
    if not body.format:
        return None
    if isinstance(body.format, dict):
        return {"type": "json_schema", "json_schema": {"name": "format", "schema": body.format, "strict": True}}
    if body.format != "json":
        raise RequestError(f'format is {body.format!r}; it must be "json" or a JSON schema', param="format")
    return {"type": "json_object"}


def chat_request(body: ChatBody) -> ChatRequest:
    """The conversation of /api/chat."""
    pending: list[dict[str, Any]] = []  # calls without a result yet
    messages = [_message(f"messages[{index}]", message, pending) for index, message in enumerate(body.messages or ())]
    return ChatRequest(messages, tools=_tools(body.tools or ()), template_variables=_thinking(body))


def prompt_request(body: GenerateBody) -> ChatRequest:
    """The prompt of /api/generate as a conversation."""
    system = [{"role": "system", "content": body.system}] if body.system else []
    return ChatRequest([*system, {"role": "user", "content": body.prompt or ""}], template_variables=_thinking(body))


def refuse_unsupported(body: GenerateBody) -> None:
    """Raises RequestError for what would change the answer and is not supported."""
    for name in ("template", "context", "images"):
        if getattr(body, name):
            raise _unsupported(f"{name} is not supported by this model", name)


def _unsupported(told: str, param: str) -> RequestError:
    return RequestError(told, param=param, code="unsupported_parameter")


def _thinking(body: GenerationBody) -> dict[str, Any]:
    if isinstance(body.think, str):
        return thinking_variables(True, body.think)
    return thinking_variables(body.think)


def _tools(tools: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """OpenAI's shape already; the type may be left out."""
    return tuple({**tool, "type": tool.get("type") or "function"} for tool in tools)


def _message(where: str, message: Mapping[str, Any], pending: list[dict[str, Any]]) -> dict[str, Any]:
    role = reading.one_of(f"{where}.role", message.get("role"), ROLES)
    if message.get("images"):
        raise RequestError(
            f"{where}.images: this model takes text only", param=f"{where}.images", code="unsupported_content"
        )
    calls = message.get("tool_calls") or []
    made: dict[str, Any] = {"role": role, "content": reading.string(where, message, "content", default="")}
    if role == "tool":
        return {**made, **_answered(where, message, pending)}
    if message.get("content") is None and not calls and not message.get("thinking"):
        raise RequestError(f"{where}.content is missing", param=f"{where}.content")
    if message.get("thinking"):
        made["reasoning_content"] = reading.string(where, message, "thinking")
    if calls:
        made["tool_calls"] = _calls(f"{where}.tool_calls", calls)
        pending[:] = made["tool_calls"]
    return made


def _calls(where: str, calls: Any) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def take(place: str, call: Mapping[str, Any]) -> None:
        function = reading.mapping(f"{place}.function", call.get("function"))
        name = reading.name(f"{place}.function", function)
        arguments = dict(reading.mapping(f"{place}.function.arguments", function.get("arguments") or {}))
        made.append(
            {
                "id": reading.string(place, call, "id", default=f"call_{len(made)}"),
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
        )

    reading.each(where, calls, take)
    return made


def _answered(where: str, message: Mapping[str, Any], pending: list[dict[str, Any]]) -> dict[str, Any]:
    """Which call a result answers: the one it names by id or tool, else the next."""
    call_id, name = message.get("tool_call_id"), message.get("tool_name") or message.get("name")
    for call in pending:
        if (call_id is None or call["id"] == call_id) and (name is None or call["function"]["name"] == name):
            pending.remove(call)
            return {"tool_call_id": call["id"], "name": call["function"]["name"]}
    if call_id is None and name is None:
        raise RequestError(f"{where} is a tool's result, and no call waits for one", param=where)
    return {key: value for key, value in (("tool_call_id", call_id), ("name", name)) if value is not None}
