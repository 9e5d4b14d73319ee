"""What core does with parsed tool calls: ids, undeclared tools, one call at a time, schemas."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from core.frontend.call_check import CallProblem, check_call
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

    A call to a tool that the request did not declare is no tool call: it is given back as text at the end of the
    answer, so that nothing is lost and no client runs what it did not offer. Without `parallel`, calls after the first
    are dropped. Arguments that do not fit the tool's schema are told of at the end.
    """

    def __init__(self, tools: Sequence[Tool], parallel: bool = True, new_id: Callable[[], str] = new_call_id) -> None:
        self._declared = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
        self._parallel = parallel
        self._new_id = new_id
        self._indices: dict[int, int] = {}  # the parser's index -> the client's
        self._undeclared: dict[int, tuple[str, list[str]]] = {}  # the parser's index -> name, arguments
        self._calls: list[tuple[str, list[str]]] = []  # the client's: name, arguments
        self.num_calls = 0

    def apply(self, deltas: Iterable[ToolCallDelta]) -> list[ToolCallPiece]:
        """What the client gets of some pieces."""
        pieces: list[ToolCallPiece] = []
        for delta in deltas:
            if delta.name is not None:
                self._begin(delta.index, delta.name, pieces)
            if not delta.arguments:
                continue
            if delta.index in self._undeclared:
                self._undeclared[delta.index][1].append(delta.arguments)
            elif (index := self._indices.get(delta.index)) is not None:
                self._calls[index][1].append(delta.arguments)
                if pieces and pieces[-1].index == index:
                    pieces[-1].arguments += delta.arguments
                else:
                    pieces.append(ToolCallPiece(index, arguments=delta.arguments))
        return pieces

    def finish(self) -> str:
        """Undeclared calls as text, one a line."""
        lines = [
            f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {"".join(arguments) or "{}"}}}'
            for name, arguments in self._undeclared.values()
        ]
        self._undeclared = {}
        return "\n".join(lines)

    def problems(self) -> list[CallProblem]:
        """What of the calls does not fit their tools' schemas. After the last piece."""
        return [
            problem
            for index, (name, arguments) in enumerate(self._calls)
            for problem in check_call(index, "".join(arguments), self._declared[name])
        ]

    def _begin(self, index: int, name: str, pieces: list[ToolCallPiece]) -> None:
        if name not in self._declared:
            self._undeclared[index] = (name, [])
        elif self._parallel or not self.num_calls:
            self._indices[index] = self.num_calls
            self._calls.append((name, []))
            pieces.append(ToolCallPiece(self.num_calls, self._new_id(), name))
            self.num_calls += 1
