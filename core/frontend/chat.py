"""Chat messages to a prompt: checks, chat template, token ids, and the output stage that fits the prompt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from core.frontend.bad_words import with_bad_tokens
from core.frontend.forced_calls import AskedChoice, force, read_choice, reader
from core.frontend.output import OutputStage
from core.frontend.template import RESERVED
from core.frontend.tokenizer import Tokenizer
from core.frontend.tool_policy import ToolPolicy
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams
from core.interfaces.parsers import ReasoningParser, Tool, ToolParser

# Ends of prompts of which it is kept whether they open reasoning. Clients may have a part in them.
MAX_OPENINGS, MAX_OPENING_CHARACTERS = 64, 256
ROLES = ("system", "developer", "user", "assistant", "tool")
INLINE_MESSAGES = 128  # more are rendered in a thread: some 50 microseconds each
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One conversation to answer, in OpenAI's shapes.

    tool_choice: None, "auto", "none", "required", a named function, or allowed tools.
    template_variables: extra names that the chat template sees (`chat_template_kwargs`).
    continue_final_message: go on with the last message, which must be the assistant's, instead of answering it.
    parse_reasoning: split reasoning from the answer where a parser is chosen.
    """

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    parse_reasoning: bool = True
    template_variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for the engine, and what its answer will go through.

    text: the prompt as text; empty where only ids were given. tools: those whose calls are looked for.
    choice: what may or must be called. reasoning_end: text that ends the reasoning which the answer begins with.
    """

    text: str
    token_ids: list[int]
    tokenizer: Tokenizer
    tools: tuple[Tool, ...] = ()
    parallel_tool_calls: bool = True
    tool_parser: ToolParser | None = None
    reasoning_parser: ReasoningParser | None = None
    opens_reasoning: bool = False
    choice: AskedChoice | None = None
    reasoning_end: str | None = None

    def constrained(self, sampling: SamplingParams, has_backend: bool = True) -> SamplingParams:
        """`sampling`, held to what tool_choice forces as well, after reasoning. has_backend: whether the engine can
        compile grammars; if not, `strict` tools are no more than wished for. Raises RequestError for what excludes each
        other."""
        sampling = with_bad_tokens(sampling, self.tokenizer)
        grammar = sampling.grammar
        if self.choice is not None:
            forced = force(self.choice, self.parallel_tool_calls, self.tool_parser, grammar)
            grammar = None if forced.optional and not has_backend else forced.grammar
        if grammar is not None and grammar.after is None and self.reasoning_end is not None:
            grammar = msgspec.structs.replace(grammar, after=self.reasoning_end)
        return sampling if grammar is sampling.grammar else msgspec.structs.replace(sampling, grammar=grammar)

    def stage(self, sampling: SamplingParams, *, align_logprobs: bool = True) -> OutputStage:
        """A fresh output stage for one answer to this prompt."""
        tools = self.tool_parser if self.tools else None
        reasoning = self.reasoning_parser
        return OutputStage(
            self.tokenizer,
            sampling,
            context=self.token_ids[-6:],
            prompt=self.token_ids,
            reasoning=reasoning.stream(self.opens_reasoning) if reasoning is not None else None,
            tools=tools.stream(self.tools) if tools is not None else None,
            policy=ToolPolicy(self.tools, self.parallel_tool_calls),
            align_logprobs=align_logprobs,
        )


@dataclass(frozen=True, slots=True)
class ChatRenderer:
    """Turns chat requests into prompts for one model."""

    tokenizer: Tokenizer
    tool_parser: ToolParser | None = None
    reasoning_parser: ReasoningParser | None = None
    _openings: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    async def prepare(self, request: ChatRequest) -> Prompt:
        """The prompt of `request`; long texts are encoded off the event loop. Raises RequestError."""
        if len(request.messages) > INLINE_MESSAGES:
            text = await asyncio.to_thread(self.render, request)
        else:
            text = self.render(request)
        return self._prompt(request, text, await self.tokenizer.encode_async(text, add_special_tokens=False))

    def prepare_now(self, request: ChatRequest) -> Prompt:
        """`prepare` without an event loop."""
        text = self.render(request)
        return self._prompt(request, text, self.tokenizer.encode(text, add_special_tokens=False))

    def render(self, request: ChatRequest) -> str:
        """The prompt text. Raises RequestError naming messages[i].field."""
        limit = self.tokenizer.max_tokens
        if limit is not None and len(request.messages) > limit:
            raise RequestError(
                f"messages holds {len(request.messages)} messages; the context has {limit} tokens",
                param="messages",
                code="context_length_exceeded",
                hint="send fewer of them",
            )
        return self._render(request, check_messages(request.messages), self._offered(request))

    def _render(
        self, request: ChatRequest, messages: list[dict[str, Any]], tools: tuple[Tool, ...], generation: bool = True
    ) -> str:
        clash = sorted(RESERVED & set(request.template_variables))
        if clash:
            raise RequestError(f"chat_template_kwargs may not set {clash[0]!r}", param="chat_template_kwargs")
        _write_ids(messages, self.tool_parser)
        going_on = request.continue_final_message
        if going_on and messages[-1]["role"] != "assistant":
            raise RequestError(
                "continue_final_message needs a last message of the assistant", param="continue_final_message"
            )
        if self.tokenizer.template is not None and "developer" not in self.tokenizer.template.source(bool(tools)):
            for message in messages:
                message["role"] = "system" if message["role"] == "developer" else message["role"]
        return self.tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            add_generation_prompt=generation and request.add_generation_prompt and not going_on,
            continue_final_message=going_on,
            **request.template_variables,
        )

    def _offered(self, request: ChatRequest) -> tuple[Tool, ...]:
        return self._choice(request).offered

    def _choice(self, request: ChatRequest) -> AskedChoice:
        return read_choice(request.tool_choice, check_tools(request.tools))

    def _prompt(self, request: ChatRequest, text: str, token_ids: list[int]) -> Prompt:
        if not token_ids:
            raise RequestError("the chat template made an empty prompt of these messages", param="messages")
        reasoning, choice = self.reasoning_parser, self._choice(request)
        opens = reasoning is not None and self._opens_reasoning(request, text, reasoning)
        parser = reader(choice, request.parallel_tool_calls, self.tool_parser)
        return Prompt(
            text,
            token_ids,
            self.tokenizer,
            tools=choice.tools if parser is not None else (),
            parallel_tool_calls=request.parallel_tool_calls,
            tool_parser=parser,
            reasoning_parser=reasoning if request.parse_reasoning else None,
            opens_reasoning=opens,
            choice=choice,
            reasoning_end=reasoning.end_marker if opens and reasoning is not None else None,
        )

    def _opens_reasoning(self, request: ChatRequest, text: str, parser: ReasoningParser) -> bool:
        """Whether the prompt ends inside reasoning: the template wrote the opening marker, or the message that is
        continued did, or the model always reasons and nothing has closed that. Asked of the parser itself: does it
        take text that follows to be reasoning?"""
        if request.continue_final_message:
            suffix = str(request.messages[-1].get("content") or "")
        elif request.add_generation_prompt:
            before = self._render(request, check_messages(request.messages), self._offered(request), generation=False)
            suffix = text.removeprefix(before) if text.startswith(before) else ""
        else:
            suffix = ""
        opens = self._openings.get(suffix)
        if opens is None:
            opens = _opens_somewhere(parser, suffix)
            # What templates write is the same nearly every time; what clients do is not worth keeping.
            if not request.continue_final_message and len(suffix) <= MAX_OPENING_CHARACTERS:
                if len(self._openings) == MAX_OPENINGS:
                    self._openings.clear()
                self._openings[suffix] = opens
        if opens:
            return True
        # A message that is continued shows where it stands; where the template begins one, a closing marker does.
        closed = parser.end_marker is not None and parser.end_marker in suffix
        return parser.always_reasons and not closed and not request.continue_final_message


def _opens_somewhere(parser: ReasoningParser, suffix: str) -> bool:
    """Whether the parser takes text behind `suffix` to be reasoning. It may want its marker at the very beginning, so
    what stands before it (a role) is left out by trying every place where a marker may begin."""
    signs = (i for i, sign in enumerate(suffix) if not (sign.isalnum() or sign.isspace()) or suffix[i - 1] == "\n")
    starts = {0, *signs}
    return any(_reasons_after(parser, suffix[start:]) for start in sorted(starts) if suffix[start:].strip())


def _reasons_after(parser: ReasoningParser, text: str) -> bool:
    stream = parser.stream(False)
    parts = [stream.feed(text), stream.feed("x"), stream.finish()]
    return "".join(part.reasoning for part in parts).endswith("x")


def _write_ids(messages: list[dict[str, Any]], parser: ToolParser | None) -> None:
    """Give calls and their results the ids that the chat template wants. Clients' ids are of any form: core's own,
    another protocol's or another server's."""
    if parser is None:
        return
    written: dict[Any, str] = {}  # by the client's ids
    number = 0
    for message in messages:
        for call in message.get("tool_calls", ()):
            made = parser.call_id(call["function"]["name"], number)
            number += 1
            if made is not None:
                written[_key(call.get("id"))] = call["id"] = made
        answered = _key(message.get("tool_call_id"))
        if message["role"] == "tool" and answered in written:
            message["tool_call_id"] = written[answered]


def _key(call_id: Any) -> str:
    return call_id if isinstance(call_id, str) else repr(call_id)


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates expect them: content is text, tool-call arguments are objects.

    Raises RequestError naming the field, as in messages[2].content[0].type.
    """
    if not messages:
        raise RequestError("messages is empty; give at least one", param="messages")
    return [_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _message(where: str, message: Message) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} is {type(message).__name__}; it must be an object", param=where)
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(f"{where}.role is {role!r}; it must be one of {', '.join(ROLES)}", param=f"{where}.role")
    made: dict[str, Any] = {key: value for key, value in message.items() if value is not None}
    calls = message.get("tool_calls")
    reasoning = next((made[name] for name in ("reasoning_content", "reasoning") if made.get(name)), None)
    made.pop("reasoning", None)
    if reasoning is not None:
        made["reasoning_content"] = reasoning
    content = message.get("content")
    if content is None:
        if role != "assistant" or not (calls or reasoning):
            raise RequestError(f"{where}.content is missing", param=f"{where}.content")
        made["content"] = ""
    else:
        made["content"] = _text(f"{where}.content", content)
    if calls:
        if role != "assistant":
            raise RequestError(f"{where}.tool_calls: only the assistant makes calls", param=f"{where}.tool_calls")
        made["tool_calls"] = _calls(f"{where}.tool_calls", calls)
    else:
        made.pop("tool_calls", None)
    return made


def _text(where: str, content: Any) -> str:
    """A string, or text parts joined by line breaks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not content:
        raise RequestError(f"{where} must be a string or a list of text parts", param=where)
    texts: list[str] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise RequestError(
                f"{where}[{index}].type is {kind!r}; this model takes text only",
                param=f"{where}[{index}].type",
                code="unsupported_content",
            )
        if not isinstance(part.get("text"), str):
            raise RequestError(f"{where}[{index}].text must be a string", param=f"{where}[{index}].text")
        texts.append(part["text"])
    return "\n".join(texts)


def _calls(where: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise RequestError(f"{where} must be a list", param=where)
    made: list[dict[str, Any]] = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RequestError(f"{where}[{index}].function.name is missing", param=f"{where}[{index}].function.name")
        made.append({**call, "type": "function", "function": {**function, "arguments": _arguments(function)}})
    return made


def _arguments(function: Mapping[str, Any]) -> Any:
    """Templates print arguments as JSON, so a string that holds an object is opened; another is left as it is (a
    model may have written a broken one, and the conversation should still go on)."""
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            opened = json.loads(arguments)
        except ValueError:
            return arguments
        return opened if isinstance(opened, dict) else arguments
    return {} if arguments is None else arguments


def check_tools(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """Raises RequestError naming tools[i].field."""
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
            raise RequestError(f'{where}.type must be "function"', param=f"{where}.type")
        function = tool.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise RequestError(f"{where}.function.name is missing", param=f"{where}.function.name")
    return tuple(tools)
