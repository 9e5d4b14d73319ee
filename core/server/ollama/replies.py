"""The answer in Ollama's shape: lines of JSON, or their sum."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

from core.frontend.output import OutputDelta, TokenLogprob
from core.frontend.pump import Answers
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import CoreError
from core.server import errors, families
from core.server.replies import line
from core.server.segments import Kind, Segment, Segmenter
from core.server.usage import Source, chat_logprobs

Deltas = Source[tuple[int, OutputDelta]]
log = logging.getLogger("core.server")
PATH = "/api/"


def timestamp(at_s: float | None = None) -> str:
    """Seconds since 1970, or now, as the protocol writes times."""
    when = datetime.fromtimestamp(time.time() if at_s is None else at_s, UTC)
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")


class Reply:
    """Writes one reply. chat: a message; else a `response`. num_top: alternatives per token; None: no logprobs."""

    def __init__(self, model: str, tokenizer: Tokenizer, *, chat: bool, num_top: int | None) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._chat = chat
        self._num_top = num_top
        self._segmenter = Segmenter()
        self._start_ns = time.perf_counter_ns()
        self._first_ns: int | None = None

    async def lines(self, deltas: Deltas, answers: Answers) -> AsyncGenerator[bytes]:
        """The stream. Whatever goes wrong on the way is its last line."""
        parts = self._parts(deltas, answers)
        try:
            async for part in parts:
                yield line(part)
        except CoreError as error:
            yield line(families.described(PATH, error)[1])
        except Exception:
            log.exception("a stream failed")
            body = errors.body("internal error; the server's log has more", 500)
            yield line(families.shaped(PATH, 500, body)[1])
        finally:
            await parts.aclose()

    async def whole(self, deltas: Deltas, answers: Answers) -> dict[str, Any]:
        """The reply in one piece: the stream joined."""
        text, thinking = "", ""
        calls: list[dict[str, Any]] = []
        logprobs: list[dict[str, Any]] = []
        made: dict[str, Any] = {}
        async for made in self._parts(deltas, answers):
            said = made["message"] if self._chat else made
            text += said["content" if self._chat else "response"]
            thinking += said.get("thinking", "")
            calls += said.get("tool_calls", [])
            logprobs += made.get("logprobs", [])
        made |= self._said(text, thinking, calls)
        return made if self._num_top is None else {**made, "logprobs": logprobs}

    def nothing(self, reason: str) -> dict[str, Any]:
        """The reply to a request that asks for no text."""
        return {**self._envelope(), **self._said("", "", []), "done": True, "done_reason": reason}

    async def _parts(self, deltas: Deltas, answers: Answers) -> AsyncGenerator[dict[str, Any]]:
        waiting: list[TokenLogprob] = []
        try:
            async for _, delta in deltas:
                self._first_ns = self._first_ns or time.perf_counter_ns()
                text, thinking, ended = self._taken(delta)
                waiting += delta.logprobs
                if not (text or thinking or ended):
                    continue
                yield {
                    **self._envelope(),
                    **self._said(text, thinking, ended),
                    "done": False,
                    **self._logprobs(waiting),
                }
                waiting = []
            yield {**self._envelope(), **self._said("", "", []), **self._logprobs(waiting), **self._end(answers)}
        finally:
            await deltas.aclose()

    def _taken(self, delta: OutputDelta) -> tuple[str, str, list[dict[str, Any]]]:
        """(text, thinking, calls that are complete now) of a delta."""
        added = {Kind.TEXT: "", Kind.REASONING: "", Kind.CALL: ""}
        ended: list[dict[str, Any]] = []
        for step in self._segmenter.feed(delta):
            added[step.segment.kind] += step.text
            if step.ends and step.segment.kind is Kind.CALL:
                number = sum(segment.kind is Kind.CALL for segment in self._segmenter.segments) - 1
                ended.append(_call(step.segment, number))
        return added[Kind.TEXT], added[Kind.REASONING], ended

    def _envelope(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": timestamp()}

    def _said(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {"content" if self._chat else "response": text}
        if thinking:
            made["thinking"] = thinking
        if calls:
            made["tool_calls"] = calls
        return {"message": {"role": "assistant", **made}} if self._chat else made

    def _logprobs(self, entries: list[TokenLogprob]) -> dict[str, Any]:
        if self._num_top is None or not entries:
            return {}
        return {"logprobs": chat_logprobs(self._tokenizer, entries, self._num_top)["content"]}

    def _end(self, answers: Answers) -> dict[str, Any]:
        """Durations are in nanoseconds; the model was loaded before."""
        end_ns = time.perf_counter_ns()
        first_ns = self._first_ns or end_ns
        return {
            "done": True,
            "done_reason": reason if (reason := self._segmenter.finish_reason) in ("length", "abort") else "stop",
            "total_duration": end_ns - self._start_ns,
            "load_duration": 0,
            "prompt_eval_count": answers.usage.prompt_tokens,
            "prompt_eval_duration": first_ns - self._start_ns,
            "eval_count": answers.usage.completion_tokens,
            "eval_duration": end_ns - first_ns,
        }


def _call(segment: Segment, index: int) -> dict[str, Any]:
    """Arguments are an object in this protocol; text that is none is kept inside one."""
    try:
        arguments = json.loads(segment.text or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"INVALID_JSON": segment.text}
    return {"id": segment.id, "function": {"index": index, "name": segment.name, "arguments": arguments}}
