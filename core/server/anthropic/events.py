"""The answer in Anthropic's shape, streamed or whole."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from core.frontend.output import OutputDelta
from core.frontend.pump import Answers, Usage
from core.interfaces.errors import CoreError
from core.server import errors, families
from core.server.anthropic.convert import call_input
from core.server.replies import named_event
from core.server.segments import Kind, Segment, Segmenter, Step
from core.server.usage import Source
from core.tracing.record import reply_id

Deltas = Source[tuple[int, OutputDelta]]
log = logging.getLogger("core.server")
PATH = "/v1/messages"


class Reply:
    """Writes one reply, streamed or whole. show_thinking: with the text of thinking blocks."""

    def __init__(self, model: str, show_thinking: bool = True) -> None:
        self._model = model
        self._show_thinking = show_thinking
        self._segmenter = Segmenter()
        self._id = reply_id("msg_")

    async def events(self, deltas: Deltas, answers: Answers) -> AsyncGenerator[bytes]:
        """The stream. Whatever goes wrong on the way is its last event."""
        try:
            begun = False
            async for _, delta in deltas:
                if not begun:
                    begun = True
                    start = self._message([], answers.usage)
                    yield named_event({"type": "message_start", "message": start})
                    yield named_event({"type": "ping"})
                for step in self._segmenter.feed(delta):
                    for item in self._block_events(step):
                        yield named_event(item)
            yield named_event({"type": "message_delta", "delta": self._stop(), "usage": self._usage(answers.usage)})
            yield named_event({"type": "message_stop"})
        except CoreError as error:
            yield named_event(families.described(PATH, error)[1])
        except Exception:
            log.exception("a stream failed")
            body = errors.body("internal error; the server's log has more", 500)
            yield named_event(families.shaped(PATH, 500, body)[1])
        finally:
            await deltas.aclose()

    def whole(self, deltas: Sequence[tuple[int, OutputDelta]], answers: Answers) -> dict[str, Any]:
        """The reply in one piece: the stream joined."""
        for _, delta in deltas:
            for _ in self._segmenter.feed(delta):
                pass
        blocks = [self._block(segment) for segment in self._segmenter.segments]
        return {**self._message(blocks, answers.usage), **self._stop()}

    def _message(self, content: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(usage),
        }

    def _usage(self, usage: Usage) -> dict[str, Any]:
        """What came from the cache is not among the input tokens, as the protocol has it."""
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        }

    def _stop(self) -> dict[str, Any]:
        reason, matched = self._segmenter.finish_reason, self._segmenter.matched_stop
        if reason == "tool_calls":
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if reason == "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if reason == "abort":
            return {"stop_reason": "abort", "stop_sequence": None}
        if isinstance(matched, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": matched}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def _block(self, segment: Segment) -> dict[str, Any]:
        match segment.kind:
            case Kind.REASONING:
                return {"type": "thinking", "thinking": segment.text if self._show_thinking else "", "signature": ""}
            case Kind.TEXT:
                return {"type": "text", "text": segment.text}
            case Kind.CALL:
                return {**_call(segment), "input": call_input(segment.text)}

    def _block_events(self, step: Step) -> Iterator[dict[str, Any]]:
        segment = step.segment
        index = len(self._segmenter.segments) - 1
        if step.begins:
            yield {"type": "content_block_start", "index": index, "content_block": _begun(segment)}
        elif step.ends:
            if segment.kind is Kind.REASONING:  # clients keep a signature; there is nothing to sign
                yield _delta(index, {"type": "signature_delta", "signature": ""})
            yield {"type": "content_block_stop", "index": index}
        elif segment.kind is Kind.TEXT:
            yield _delta(index, {"type": "text_delta", "text": step.text})
        elif segment.kind is Kind.CALL:
            yield _delta(index, {"type": "input_json_delta", "partial_json": step.text})
        elif self._show_thinking:
            yield _delta(index, {"type": "thinking_delta", "thinking": step.text})


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def _call(segment: Segment) -> dict[str, Any]:
    call_id = segment.id
    if call_id.startswith("call_"):  # core's own; the protocol's clients know another beginning
        call_id = f"toolu_{call_id.removeprefix('call_')}"
    return {"type": "tool_use", "id": call_id, "name": segment.name}


def _begun(segment: Segment) -> dict[str, Any]:
    match segment.kind:
        case Kind.REASONING:
            return {"type": "thinking", "thinking": "", "signature": ""}
        case Kind.TEXT:
            return {"type": "text", "text": ""}
        case Kind.CALL:
            return {**_call(segment), "input": {}}
