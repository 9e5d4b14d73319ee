"""What core does with parsed tool calls: ids, undeclared tools, one call at a time."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from core.interfaces.parsers import Tool, ToolCallDelta


@dataclass(slots=True)
class ToolCallPiece:
    """A piece of a tool call for the client. `id` and `name` come once, with the call's first piece."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


def new_call_id() -> str:
    """Unique, in the form that clients know."""
    return f"call_{uuid.uuid4().hex[:24]}"


class ToolPolicy:
    """State of one answer.

    A call to a tool that the request did not declare is no tool call: its name and arguments are given back as text, so
    that nothing is lost and no client runs what it did not offer. Without `parallel`, calls after the first are dropped.
    """

    def __init__(self, tools: Sequence[Tool], parallel: bool = True, new_id: Callable[[], str] = new_call_id) -> None:
        self._declared = frozenset(tool["function"]["name"] for tool in tools)
        self._parallel = parallel
        self._new_id = new_id
        self._indices: dict[int, int | None] = {}  # the parser's index -> the client's; None: not passed on
        self._as_text: int | None = None  # the parser's index of an undeclared call that is being written as text
        self.num_calls = 0

    def apply(self, deltas: Iterable[ToolCallDelta]) -> tuple[list[ToolCallPiece], str]:
        """(pieces for the client, text)."""
        pieces: list[ToolCallPiece] = []
        text: list[str] = []
        for delta in deltas:
            if delta.index != self._as_text:
                text.append(self.finish())
            if delta.name is not None:
                text.append(self._begin(delta.index, delta.name, pieces))
            if not delta.arguments:
                continue
            if delta.index == self._as_text:
                text.append(delta.arguments)
            elif (index := self._indices.get(delta.index)) is not None:
                if pieces and pieces[-1].index == index:
                    pieces[-1].arguments += delta.arguments
                else:
                    pieces.append(ToolCallPiece(index, arguments=delta.arguments))
        return pieces, "".join(text)

    def finish(self) -> str:
        """Text that closes an undeclared call which is being written as text."""
        if self._as_text is None:
            return ""
        self._as_text = None
        return "}"

    def _begin(self, index: int, name: str, pieces: list[ToolCallPiece]) -> str:
        if name not in self._declared:
            self._indices[index] = None
            self._as_text = index
            return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
        if self.num_calls and not self._parallel:
            self._indices[index] = None
            return ""
        self._indices[index] = self.num_calls
        pieces.append(ToolCallPiece(self.num_calls, self._new_id(), name))
        self.num_calls += 1
        return ""
