"""The answer as items, and the events of its making. A whole answer is the last event's response."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from core.frontend.output import OutputDelta, TokenLogprob
from core.frontend.pump import Answers
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import CoreError
from core.server import errors
from core.server.responses.items import new_id
from core.server.segments import Kind, Segment, Segmenter, Step
from core.server.usage import Source, chat_logprobs

Deltas = Source[tuple[int, OutputDelta]]
Event = dict[str, Any]
log = logging.getLogger("core.server")


class Writer:
    """Writes one response.

    frame: the response without what generating it tells. num_top: alternatives per token; None: no logprobs.
    summarize: reasoning goes into the summary instead of the content.
    """

    def __init__(self, frame: dict[str, Any], tokenizer: Tokenizer, *, num_top: int | None, summarize: bool) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._summarize = summarize
        self._segmenter = Segmenter()
        self._sequence = 0
        self._item_id = ""
        self.response = {**frame, "status": "in_progress", "output": []}

    async def events(self, deltas: Deltas, answers: Answers) -> AsyncGenerator[Event]:
        """The stream. Raises what generating raises."""
        try:
            yield self._whole("response.created")
            yield self._whole("response.in_progress")
            async for _, delta in deltas:
                for step in self._segmenter.feed(delta):
                    for event in self._step(step):
                        yield event
            if not self._segmenter.segments:  # an answer without a word is a message without one
                for step in (Step(Segment(Kind.TEXT), begins=True), Step(Segment(Kind.TEXT), ends=True)):
                    for event in self._step(step):
                        yield event
            yield self._end(answers)
        finally:
            await deltas.aclose()

    async def safe_events(self, deltas: Deltas, answers: Answers) -> AsyncGenerator[Event]:
        """The stream. Whatever goes wrong on the way is its last event."""
        events = self.events(deltas, answers)
        try:
            async for event in events:
                yield event
        except CoreError as error:
            yield self._failed(errors.describe(error)[1]["error"]["message"])
        except Exception:
            log.exception("a response failed")
            yield self._failed("internal error; the server's log has more")
        finally:
            await events.aclose()

    def _end(self, answers: Answers) -> Event:
        usage = answers.usage
        reason = {"length": "max_output_tokens", "abort": "aborted"}.get(self._segmenter.finish_reason or "")
        cut = reason is not None
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": reason} if cut else None,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }
        return self._whole(f"response.{self.response['status']}")

    def _failed(self, message: str) -> Event:
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        return self._whole("response.failed")

    def _whole(self, kind: str) -> Event:
        return self._event(kind, response={**self.response, "output": list(self.response["output"])})

    def _event(self, kind: str, **fields: Any) -> Event:
        made = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return made

    def _step(self, step: Step) -> Iterator[Event]:
        segment = step.segment
        if step.begins:
            self._item_id = new_id({Kind.TEXT: "msg", Kind.REASONING: "rs", Kind.CALL: "fc"}[segment.kind])
        match segment.kind:
            case Kind.TEXT:
                yield from self._text(step)
            case Kind.REASONING if self._summarize:
                yield from self._summary(step)
            case Kind.REASONING:
                yield from self._reasoning(step)
            case Kind.CALL:
                yield from self._call(step)

    def _text(self, step: Step) -> Iterator[Event]:
        segment = step.segment
        item = {"type": "message", "role": "assistant"}
        part: Event = {"type": "output_text", "annotations": []}
        if step.begins:
            yield self._added({**item, "content": []})
            yield self._part("content_part.added", part={**part, "text": "", "logprobs": []})
        elif step.ends:
            logprobs = self._logprobs(segment.logprobs)
            done = {**part, "text": segment.text, "logprobs": logprobs}
            yield self._part("output_text.done", text=segment.text, logprobs=logprobs)
            yield self._part("content_part.done", part=done)
            yield self._done({**item, "content": [done]})
        else:
            yield self._part("output_text.delta", delta=step.text, logprobs=self._logprobs(step.logprobs))

    def _reasoning(self, step: Step) -> Iterator[Event]:
        segment = step.segment
        part = {"type": "reasoning_text", "text": segment.text}
        item: Event = {"type": "reasoning", "summary": [], "encrypted_content": None}
        if step.begins:
            yield self._added({**item, "content": []})
            yield self._part("content_part.added", part=part)
        elif step.ends:
            yield self._part("reasoning_text.done", text=segment.text)
            yield self._part("content_part.done", part=part)
            yield self._done({**item, "content": [part]})
        else:
            yield self._part("reasoning_text.delta", delta=step.text)

    def _summary(self, step: Step) -> Iterator[Event]:
        segment = step.segment
        part = {"type": "summary_text", "text": segment.text}
        item: Event = {"type": "reasoning", "encrypted_content": None}
        if step.begins:
            yield self._added({**item, "summary": []})
            yield self._part("reasoning_summary_part.added", index="summary_index", part=part)
        elif step.ends:
            yield self._part("reasoning_summary_text.done", index="summary_index", text=segment.text)
            yield self._part("reasoning_summary_part.done", index="summary_index", part=part)
            yield self._done({**item, "summary": [part]})
        else:
            yield self._part("reasoning_summary_text.delta", index="summary_index", delta=step.text)

    def _call(self, step: Step) -> Iterator[Event]:
        segment = step.segment
        item = {"type": "function_call", "call_id": segment.id, "name": segment.name, "arguments": segment.text}
        if step.begins:
            yield self._added(item)
        elif step.ends:
            yield self._part("function_call_arguments.done", index="", name=segment.name, arguments=segment.text)
            yield self._done(item)
        else:
            yield self._part("function_call_arguments.delta", index="", delta=step.text)

    def _added(self, item: Event) -> Event:
        item = {"id": self._item_id, **item, "status": "in_progress"}
        return self._event("response.output_item.added", output_index=len(self.response["output"]), item=item)

    def _done(self, item: Event) -> Event:
        status = "incomplete" if self._segmenter.finish_reason == "length" else "completed"
        item = {"id": self._item_id, **item, "status": status}
        index = len(self.response["output"])
        self.response["output"].append(item)
        return self._event("response.output_item.done", output_index=index, item=item)

    def _part(self, kind: str, *, index: str = "content_index", **fields: Any) -> Event:
        """An event within the open item. index: the name of the part's place, always the first; "" has none."""
        place = {index: 0} if index else {}
        output_index = len(self.response["output"])
        return self._event(f"response.{kind}", item_id=self._item_id, output_index=output_index, **place, **fields)

    def _logprobs(self, entries: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> list[Event]:
        if self._num_top is None:
            return []
        found: list[Event] = chat_logprobs(self._tokenizer, entries, self._num_top)["content"]
        return found
