"""Calls written with tags around every parameter: what a format is made of, and the one machine that reads them all.

    <tool_call>                         section: tags around one or several calls (a format may have none)
    <function=get_weather>              opening, name, name_close
    <parameter=city>                    parameter: opening, key, key_close
    Paris                               the value, as bare text
    </parameter>                        parameter: close
    </function>                         close
    </tool_call>

White space may stand between tags. When a call is given out, and what becomes of one that breaks, is said in
core.parsing.call_output; how values become JSON in core.parsing.typed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from core.interfaces.parsers import ParsedDelta, ParserStream, Tool
from core.parsing.call_output import CallOutput, json_string
from core.parsing.reader import Machine, Markers, Reader, Reading
from core.parsing.typed import ANY, TEXT, Typing, json_value, parameter_typings

_MAX_NAME = 256
_NAME = re.compile(r"[^\s<>\"'=(){}\[\]]")
_KEY = re.compile(r"[^<>\"\n]")
_ESCAPE = re.compile(r"\\.", re.DOTALL)
_NULL = ("null", "None")

ValueKind = Literal["schema", "string", "json"]


@dataclass(frozen=True, slots=True)
class ParameterTags:
    """Tags of one parameter.

    key_closes: (text behind the key, how the value is read) each: by the tool's "schema", as a "string" whatever it
        says, or as "json", by the schema where it is none or of a type that the schema does not allow.
    value_open: a tag between key and value, "" if there is none.
    trim: one line break behind the opening and one before the closing tag belong to the format.
    unclosed: models leave the closing tag out now and then. On a line of its own, the opening tag of another parameter
        that the tool has, or the call's end, then closes a value too.
    """

    open: str
    key_closes: tuple[tuple[str, ValueKind], ...]
    close: str
    value_open: str = ""
    trim: bool = False
    unclosed: bool = False


@dataclass(frozen=True, slots=True)
class TagFormat:
    """One format of calls. No tag may begin another.

    open: tags before the name. name_close: what ends the name; "": white space or the next tag.
    close: tags at the end of a call.
    section: tags around all calls of an answer; several calls may stand in one, and one that is never closed counts.
    bare: whether a call may also stand outside of a section.
    json_body: whether a call may hold one JSON object instead of parameters.
    gap, section_gap: what a model writes between the tags of a call, and inside a section around its calls; only for
        `structure`, since any white space is read.
    """

    open: tuple[str, ...]
    name_close: str
    parameter: ParameterTags
    close: tuple[str, ...]
    section: tuple[str, str] | None = None
    bare: bool = False
    json_body: bool = False
    gap: str = "\n"
    section_gap: str = "\n"


class TagStream(ParserStream):
    """State of one text."""

    def __init__(self, form: TagFormat, tools: Sequence[Tool], hold: int) -> None:
        """tools: their `parameters` say how values are read; calls of others are read as well."""
        self._form = form
        self._tools = tools
        self._typings: dict[str, dict[str, Typing]] = {}
        self._reader = Reader()
        self._output = CallOutput(self._reader, hold)
        self._machine = Machine(self._reader, self._read())
        tags = form.parameter
        self._others = {f"\n{tags.open}", f"\n{form.close[0]}"} if tags.unclosed else set()
        self._value_end = Markers(*((f"\n{tags.close}",) if tags.trim else ()), tags.close, *self._others)
        self._read_ahead = ""  # a tag behind a value that was not closed
        self._call_end = Markers(form.close[0])

    def feed(self, delta: str) -> ParsedDelta:
        """See the interface."""
        self._machine.feed(delta)
        return self._output.take()

    def finish(self) -> ParsedDelta:
        """See the interface."""
        self._machine.finish()
        self._output.finish()
        return self._output.take()

    def _read(self) -> Reading[None]:
        """The whole text. In a section that a broken call has made text, further calls are still looked for."""
        form, reader, output = self._form, self._reader, self._output
        call, section = form.open[0], form.section
        outside = Markers(call) if section is None else Markers(section[0], *((call,) if form.bare else ()))
        torn = outside if section is None else Markers(*section, call)
        markers = outside
        while True:
            found = yield from reader.until(markers, output.text)
            if found is None:
                return
            if section is not None and found == section[1]:
                output.text(found)
                markers = outside
                continue
            output.begin(found)
            state = yield from self._calls(in_section=section is not None, begun=found == call)
            if state == "broken" and output.break_off():
                yield from reader.all(output.text)
                return
            markers = outside if state == "done" else torn

    def _calls(self, *, in_section: bool, begun: bool) -> Reading[Literal["done", "left", "broken"]]:
        """One call, or a section with calls. begun: the first tag of a call has been read already, otherwise that of
        the section. "broken": what was begun is not complete. "left": other text stands in the section."""
        form, reader, output = self._form, self._reader, self._output
        fresh = True  # nothing of the section has been given out
        while True:
            if not begun:
                space = yield from reader.space()
                if not fresh:
                    output.text(space)
                closing = form.section[1:] if form.section and not fresh else ()
                found = yield from reader.literal(form.open[0], *closing)
                if found is None:
                    return "broken" if fresh else "left"
                if found != form.open[0]:
                    output.drop_space()
                    return "done"
                if not fresh:
                    output.begin(found)
            if not (yield from self._call()):
                return "broken"
            output.complete()
            begun = fresh = False
            if not in_section:
                return "done"

    def _call(self) -> Reading[bool]:
        """A call, behind the first of its opening tags; whether it is one."""
        form, reader, output = self._form, self._reader, self._output
        if not (yield from self._literals(form.open[1:])):
            return False
        yield from reader.space()
        name = yield from reader.run(_NAME, _MAX_NAME)
        if name is None or (form.name_close and not (yield from reader.literal(form.name_close))):
            return False
        output.name(name)
        output.write("{")
        output.check()
        yield from reader.space()
        if form.json_body and (yield from reader.peek()) == "{":
            return (yield from self._json_body())
        typings = self._typings_of(name)
        keys: set[str] = set()
        while True:
            found: str | None = self._read_ahead
            self._read_ahead = ""
            if not found:
                yield from reader.space()
                found = yield from reader.literal(form.parameter.open, form.close[0])
            if found is None:
                return False
            if found == form.close[0]:
                if not (yield from self._literals(form.close[1:])):
                    return False
                output.write("}")
                return True
            if not (yield from self._parameter(typings, keys)):
                return False
            output.check()

    def _parameter(self, typings: dict[str, Typing], keys: set[str]) -> Reading[bool]:
        """A parameter, behind its opening tag."""
        tags, reader, output = self._form.parameter, self._reader, self._output
        key = yield from reader.run(_KEY, _MAX_NAME)
        if key is None or not key.strip() or key in keys:
            return False
        closed = yield from reader.literal(*(text for text, _ in tags.key_closes))
        if closed is None:
            return False
        if tags.value_open:
            yield from reader.space()
            if not (yield from reader.literal(tags.value_open)):
                return False
        if tags.trim:
            yield from reader.literal("\n")
        head = (", " if keys else "") + json.dumps(key, ensure_ascii=False) + ": "
        keys.add(key)
        kind = next(kind for text, kind in tags.key_closes if text == closed)
        typing = TEXT if kind == "string" else typings.get(key, ANY)
        output.check()
        if kind != "json" and (typing.as_written or typing.as_written_but_null):
            return (yield from self._string(head, typings.keys() - keys, nullable=not typing.as_written))
        value = yield from self._whole_value(typings.keys() - keys)
        if value is not None:
            output.write(head + typing.to_json(value, quoted=kind == "json"))
        return value is not None

    def _until_end(self, left: Set[str], sink: Callable[[str], None]) -> Reading[str | None]:
        """The text of a value and what ends it; None if nothing does. left: parameters that may still come."""
        reader, form = self._reader, self._form
        while True:
            found = yield from reader.until(self._value_end, sink)
            if found is None or found not in self._others:
                return found
            if found[1:] == form.parameter.open:
                closes = [close for close, _ in form.parameter.key_closes]
                following = [key + close for key in sorted(left) for close in closes]
                ends = following and (yield from reader.literal(*following, read=False)) is not None
            else:
                rest = [space + tag for tag in (*form.close[1:], *(form.section or ())[1:]) for space in ("", "\n")]
                ends = (yield from reader.peek()) == "" or (
                    rest and (yield from reader.literal(*rest, read=False)) is not None
                )
            if ends:
                self._read_ahead = found[1:]
                return found
            sink(found)

    def _string(self, head: str, left: Set[str], *, nullable: bool) -> Reading[bool]:
        """A value that is a string, given out as it comes; or null if it may be and all of it says so."""
        output = self._output
        begun: list[str] = []  # pieces, while they may still be null
        out = False

        def give(piece: str) -> None:
            nonlocal out
            if not out:
                begun.append(piece)
                text = "".join(begun)
                if nullable and any(word.startswith(text) for word in _NULL):
                    output.check()
                    return
                out, piece = True, text
                output.write(f'{head}"')
            output.write(json_string(piece))
            output.check()

        closed = yield from self._until_end(left, give)
        if closed is None:
            return False
        if out:
            output.write('"')
        else:
            text = "".join(begun)
            output.write(head + ("null" if text in _NULL else f'"{json_string(text)}"'))
        return True

    def _whole_value(self, left: Set[str]) -> Reading[str | None]:
        """The text of a value, to its closing tag; None if there is none. A closing tag inside of a string in JSON is
        part of the value, unless the call goes on behind it: then the JSON is broken."""
        reader, form = self._reader, self._form
        pieces: list[str] = []
        quoted = False

        def take(piece: str) -> None:
            pieces.append(piece)
            self._output.check()

        while True:
            first = len(pieces)
            closed = yield from self._until_end(left, take)
            if closed is None:
                return None
            if self._read_ahead:
                return "".join(pieces)
            segment = "".join(pieces[first:])
            if first or segment.lstrip()[:1] in ("{", "[", '"'):
                quoted ^= _ESCAPE.sub("", segment).count('"') % 2 == 1
            if not quoted:
                return "".join(pieces)
            space = yield from reader.space()
            if (yield from reader.literal(form.parameter.open, form.close[0], read=False)) is not None:
                return "".join(pieces)
            pieces += [closed, space]

    def _json_body(self) -> Reading[bool]:
        """A call whose arguments are one JSON object."""
        pieces: list[str] = []
        if (yield from self._reader.until(self._call_end, pieces.append)) is None:
            return False
        body = "".join(pieces).strip()
        value = json_value(body)
        if value is None or not isinstance(value[1], dict):
            return False
        if not (yield from self._literals(self._form.close[1:])):
            return False
        self._output.write(body[1:])
        return True

    def _literals(self, literals: Sequence[str]) -> Reading[bool]:
        for literal in literals:
            yield from self._reader.space()
            if not (yield from self._reader.literal(literal)):
                return False
        return True

    def _typings_of(self, name: str) -> dict[str, Typing]:
        if name not in self._typings:
            functions = (tool.get("function", {}) for tool in self._tools)
            parameters = next(
                (function.get("parameters") for function in functions if function.get("name") == name), None
            )
            self._typings[name] = parameter_typings(parameters)
        return self._typings[name]
