"""The one output stage: tokens -> text -> stop strings -> reasoning -> tool calls.

Streaming feeds it chunk by chunk; a whole answer is the stream joined. For every way of cutting the tokens into chunks
the joined result is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from core.frontend.call_check import CallProblem
from core.frontend.tokenizer import Tokenizer
from core.frontend.tool_policy import ToolCallPiece, ToolPolicy
from core.interfaces.params import SamplingParams
from core.interfaces.parsers import ParsedDelta, ParserStream
from core.parsing.scanner import Remover, Scanner
from core.parsing.stop_regex import RegexScanner


class TopEntry(Protocol):
    """One token's log-probability and the best alternatives, descending."""

    @property
    def logprob(self) -> float: ...
    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def logprobs(self) -> Sequence[float]: ...


class Extras(Protocol):
    """What a request gave beside tokens (`core.engine.messages.Extras`)."""

    @property
    def prompt_start(self) -> int: ...
    @property
    def prompt_logprobs(self) -> Sequence[TopEntry] | None: ...
    @property
    def hidden(self) -> bytes: ...
    @property
    def hidden_size(self) -> int: ...


class Chunk(Protocol):
    """What an engine says of one request (`core.engine.client.TokenChunk`)."""

    @property
    def tokens(self) -> Sequence[int]: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def stop_token(self) -> int | None: ...
    @property
    def cached_tokens(self) -> int | None: ...
    @property
    def logprobs(self) -> Sequence[TopEntry] | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def extras(self) -> Sequence[Extras] | None: ...


@dataclass(frozen=True, slots=True)
class PromptLogprob:
    """One token of the prompt, given those before it. logprob: None for the very first, which has nothing before it.
    top: (id, log-probability) of the most likely tokens at its place, descending."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token that has become text. top: (id, log-probability), descending. text_offset: where the token's text
    begins in the answer, in characters."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    text_offset: int


@dataclass(slots=True)
class OutputDelta:
    """What a chunk turned into.

    text: the answer. reasoning: what came before it. token_ids: tokens that count as generated. reasoning_tokens: how
    many more tokens are known to be reasoning: all up to the last one that gave some.
    finish_reason: None while running, else "stop" | "length" | "tool_calls" | "abort" | "error".
    matched_stop: the token id or the string that ended the text. After a string matched, the engine does not know yet:
    the caller closes the engine's iterator.
    prompt_logprobs: of the prompt's tokens from `SamplingParams.prompt_logprobs_start` on, all of them with the first
    token; None in every other delta. hidden [n, hidden_size] float32: the final hidden state that each of `token_ids`
    was drawn from, in order; with hidden_states "all", the first delta's begin with those of the other prompt tokens,
    so that all together are as many as prompt and answer have tokens, less one. None where nothing was asked for.
    call_problems: with the last delta, what of the calls does not fit their tools' schemas.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ToolCallPiece] = ()
    logprobs: Sequence[TokenLogprob] = ()
    token_ids: Sequence[int] = ()
    reasoning_tokens: int = 0
    finish_reason: str | None = None
    matched_stop: int | str | None = None
    cached_tokens: int | None = None
    error: str | None = None
    prompt_logprobs: list[PromptLogprob] | None = None
    hidden: npt.NDArray[np.float32] | None = None
    call_problems: Sequence[CallProblem] = ()

    @property
    def empty(self) -> bool:
        """Nothing for a client to see."""
        return not (self.text or self.reasoning or self.tool_calls or self.logprobs or self.finish_reason)

    @property
    def only_text(self) -> bool:
        """Text of the answer, and nothing beside the tokens that it was made of."""
        return bool(self.text) and not (
            self.reasoning or self.tool_calls or self.logprobs or self.finish_reason
            or self.prompt_logprobs is not None or self.hidden is not None
        )  # fmt: skip


@dataclass(slots=True)
class _Waiting:
    """A token with log-probabilities whose text is not out yet. start, end: in decoded characters; end is None while
    its character is incomplete."""

    entry: TokenLogprob
    start: int
    end: int | None


class OutputStage:
    """State of one answer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        context: Sequence[int] = (),
        prompt: Sequence[int] = (),
        reasoning: ParserStream | None = None,
        tools: ParserStream | None = None,
        policy: ToolPolicy | None = None,
        align_logprobs: bool = True,
    ) -> None:
        """Raises RequestError for a regular expression that cannot be used.

        context: the prompt's last ids. prompt: all of them, where prompt_logprobs are asked for. reasoning, tools:
        parsers; `policy` goes with `tools`.

        align_logprobs: give a token's log-probability out with its text, and none for text that a stop string cut;
        otherwise with the token.
        """
        self._sampling = sampling
        self._prompt = prompt if sampling.prompt_logprobs is not None else None
        self._reasoning = reasoning
        self._tools = tools
        self._policy = policy if policy is not None else ToolPolicy(())
        # Markers that parsers look for may be special tokens, so parsers see all of the text, and what they leave
        # of special tokens is taken out after them.
        parsing = reasoning is not None or tools is not None
        remove = parsing and sampling.skip_special_tokens and tokenizer.special_texts
        self._removers = (Remover(tokenizer.special_texts), Remover(tokenizer.special_texts)) if remove else None
        self._decoder = tokenizer.decode_stream(sampling.skip_special_tokens and not parsing, context)
        self._scanner = _scanner(sampling)
        self._align = align_logprobs
        # Nothing looks at the text or goes with it, so that tokens are decoded and that is all.
        self._plain = not parsing and self._scanner is None and sampling.logprobs is None and self._prompt is None
        self._waiting: list[_Waiting] = []
        self._decoded = 0  # characters that came out of the decoder
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.finished = False

    def get_ready(self) -> None:
        """Do what can be done before the first chunk. It need not be called."""
        self._decoder.get_ready()

    def feed(self, chunk: Chunk) -> OutputDelta:
        """Take the engine's next chunk. After `finish_reason` was given, nothing more may be fed."""
        if self._plain and not chunk.extras:
            return self._feed_plain(chunk)
        delta = OutputDelta(cached_tokens=chunk.cached_tokens, error=chunk.error)
        delta.token_ids = taken = []
        self._take_extras(chunk, delta)
        pieces: list[str] = []
        ends_of_tokens: list[int] = []  # in `pieces`
        last = len(chunk.tokens) - 1
        for position, token in enumerate(chunk.tokens):
            self.num_tokens += 1
            taken.append(token)
            ends = position == last and chunk.stop_token is not None and token == chunk.stop_token
            hidden = ends and not self._sampling.include_stop_str_in_output
            piece = "" if hidden else self._decoder.step(token)
            if chunk.logprobs is not None and not (hidden and self._align):
                self._note(token, chunk.logprobs[position], len(piece))
            self._decoded += len(piece)
            stopped = self._scan(piece, pieces, delta)
            ends_of_tokens.append(len(pieces))
            if stopped:
                break
        if not self.finished and chunk.finish_reason is not None:
            self._end(chunk, pieces, delta)
        self._release(delta)
        self._parse(pieces, ends_of_tokens, delta)
        return delta

    def _feed_plain(self, chunk: Chunk) -> OutputDelta:
        """`feed` where there is only text."""
        tokens, finish, stop = chunk.tokens, chunk.finish_reason, chunk.stop_token
        self.num_tokens += len(tokens)
        shown = tokens
        if stop is not None and tokens and tokens[-1] == stop and not self._sampling.include_stop_str_in_output:
            shown = tokens[:-1]
        text = self._decoder.step(shown[0]) if len(shown) == 1 else "".join(map(self._decoder.step, shown))
        if finish is not None:
            self.finished = True
            text += self._decoder.flush()
        return OutputDelta(
            text, token_ids=tokens, finish_reason=finish, matched_stop=stop if finish is not None else None,
            cached_tokens=chunk.cached_tokens, error=chunk.error,
        )  # fmt: skip

    def _take_extras(self, chunk: Chunk, delta: OutputDelta) -> None:
        """Prompt log-probabilities (which come with the first token) and hidden states."""
        extras = chunk.extras or ()
        if self._prompt is not None and chunk.tokens:
            start = self._sampling.prompt_logprobs_start
            known: dict[int, TopEntry] = {}
            told: list[PromptLogprob] = []
            for item in extras:
                known |= dict(enumerate(item.prompt_logprobs or (), item.prompt_start))
            for position in range(start, len(self._prompt)):
                entry = known.get(position)
                top = () if entry is None else tuple(zip(entry.ids, entry.logprobs, strict=True))
                logprob = None if entry is None else entry.logprob
                told.append(PromptLogprob(self._prompt[position], logprob, top))
            delta.prompt_logprobs = told
            self._prompt = None
        states = [np.frombuffer(item.hidden, "<f4").reshape(-1, item.hidden_size) for item in extras if item.hidden]
        if states:
            delta.hidden = np.concatenate(states) if len(states) > 1 else states[0]

    def _scan(self, piece: str, pieces: list[str], delta: OutputDelta) -> bool:
        """Add the part of `piece` that is safe to show; True if a stop string ended the text."""
        if self._scanner is None:
            pieces.append(piece)
            return False
        if not piece:
            return False
        safe, found, rest = self._scanner.feed(piece, armed=self.num_tokens > self._sampling.min_tokens)
        pieces.append(safe)
        if found is None:
            return False
        cut = self._decoded - len(rest) - len(found)
        if self._sampling.include_stop_str_in_output:
            pieces.append(found)
            cut += len(found)
        self._waiting = [waiting for waiting in self._waiting if waiting.start < cut]
        for waiting in self._waiting:
            waiting.end = min(cut, waiting.end or cut)
        self._decoded = cut
        self.finished = True
        delta.finish_reason, delta.matched_stop = "stop", self._scanner.name_of(found)
        return True

    def _end(self, chunk: Chunk, pieces: list[str], delta: OutputDelta) -> None:
        """The engine says that this was the last chunk."""
        tail = self._decoder.flush()
        self._decoded += len(tail)
        if self._scan(tail, pieces, delta):
            return
        if self._scanner is not None:
            pieces.append(self._scanner.flush())
        self.finished = True
        delta.finish_reason, delta.matched_stop = chunk.finish_reason, chunk.stop_token

    def _parse(self, pieces: list[str], ends_of_tokens: list[int], delta: OutputDelta) -> None:
        """Reasoning, then tool calls, of the text that is safe to show."""
        parsed = self._reason(pieces, ends_of_tokens, delta)
        delta.reasoning = parsed.reasoning
        answer = _through(self._tools, parsed.content, self.finished)
        delta.reasoning += answer.reasoning
        delta.text = answer.content
        delta.tool_calls = self._policy.apply(answer.tool_calls)
        if self._removers is not None:
            delta.text = self._removers[0].feed(delta.text)
            delta.reasoning = self._removers[1].feed(delta.reasoning)
            if self.finished:
                delta.text += self._removers[0].flush()
                delta.reasoning += self._removers[1].flush()
        if self.finished:
            delta.text += self._policy.finish()
            delta.call_problems = self._policy.problems()
            if self._policy.num_calls and delta.finish_reason == "stop":
                delta.finish_reason = "tool_calls"

    def _reason(self, pieces: list[str], ends_of_tokens: list[int], delta: OutputDelta) -> ParsedDelta:
        """Split off reasoning, a token at a time so that its tokens can be counted however they were chunked."""
        if self._reasoning is None:
            return ParsedDelta(content="".join(pieces))
        whole, start = ParsedDelta(), 0
        before = self.num_tokens - len(ends_of_tokens)
        for number, end in enumerate([*ends_of_tokens, len(pieces)], before + 1):
            is_last = number > self.num_tokens
            part = _through(self._reasoning, "".join(pieces[start:end]), self.finished and is_last)
            start = end
            whole.content += part.content
            whole.reasoning += part.reasoning
            if part.reasoning:
                tokens = min(number, self.num_tokens)
                delta.reasoning_tokens += tokens - self.num_reasoning_tokens
                self.num_reasoning_tokens = tokens
        return whole

    def _note(self, token: int, top: TopEntry, characters: int) -> None:
        """Remember a token's log-probability until its text is out."""
        entry = TokenLogprob(token, top.logprob, tuple(zip(top.ids, top.logprobs, strict=True)), self._decoded)
        end = self._decoded + characters if characters else None
        if end is not None:
            for waiting in self._waiting:
                waiting.end = waiting.end if waiting.end is not None else end
        self._waiting.append(_Waiting(entry, self._decoded, end))

    def _release(self, delta: OutputDelta) -> None:
        """Give out log-probabilities of tokens whose text is out."""
        if not self._waiting:
            return
        if self.finished or not self._align:
            ready = len(self._waiting)
        else:
            shown = self._decoded - (len(self._scanner.held) if self._scanner is not None else 0)
            ready = 0
            for waiting in self._waiting:
                if waiting.end is None or waiting.end > shown:
                    break
                ready += 1
        delta.logprobs = [waiting.entry for waiting in self._waiting[:ready]]
        del self._waiting[:ready]


def _scanner(sampling: SamplingParams) -> Scanner | RegexScanner | None:
    """What looks for the strings and expressions that end the text. Raises RequestError for an expression."""
    if sampling.stop_regex:
        return RegexScanner(sampling.stop_regex, sampling.stop)
    return Scanner(sampling.stop) if sampling.stop else None


def _through(parser: ParserStream | None, text: str, final: bool) -> ParsedDelta:
    """`text` through one parser, with what it holds back if the text is over."""
    if parser is None:
        return ParsedDelta(content=text)
    parsed = parser.feed(text) if text else ParsedDelta()
    if final:
        rest = parser.finish()
        parsed.content += rest.content
        parsed.reasoning += rest.reasoning
        parsed.tool_calls = [*parsed.tool_calls, *rest.tool_calls]
    return parsed
