"""Tool calls with JSON bodies: a format is data (`JsonCalls`), one stream machine reads it, one function writes its
structure. A plugin of such a format is a `JsonToolParser` with a `calls` attribute.

What every format gets:

- The name first, then the arguments as the model wrote them.
- A call is held back until it is whole or its arguments have grown past `hold` characters; from then on arguments go
  out as they come. What breaks while it is held back comes back as text.
- A text that ends inside a call closes it if its JSON is whole: the closing marker may have been a stop token.
- White space between calls, before one, and after the last one belongs to the format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from core.interfaces.context import PluginContext
from core.interfaces.grammar import Structure
from core.interfaces.parsers import ParserStream, Tool, ToolChoice, ToolParser
from core.parsing.settings import hold_of
from core.parsing.structures import Writing, written_structure


@dataclass(frozen=True, slots=True)
class Literal:
    """One of some texts; none of them begins another. optional: skipped where the next character begins none."""

    options: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Name:
    """The tool's name outside of JSON: letters, digits and any of "_.:/-".

    prefix: taken off where it is there. index: a colon and a number behind the name are taken off.
    """

    prefix: str = ""
    index: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """Something of the same characters as a name that means nothing here, such as a call's id."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """A JSON object: the arguments themselves."""


@dataclass(frozen=True, slots=True)
class CallObject:
    """A JSON object that holds name and arguments. Arguments may also be a JSON string that holds an object, or null,
    which is {}.

    name_keys, argument_keys: any of them, once. ignored_keys: may be there with any value; all other keys are wrong.
    needs_arguments: without their key it is no call; otherwise the arguments are {}.
    """

    name_keys: tuple[str, ...] = ("name",)
    argument_keys: tuple[str, ...] = ("arguments",)
    ignored_keys: tuple[str, ...] = ("id", "type", "index")
    needs_arguments: bool = False


Part = Literal | Name | Word | Arguments | CallObject


@dataclass(frozen=True, slots=True)
class Layout:
    """How calls stand in a text: opener, parts before the calls, calls with a separator, closers.

    White space may stand between all of these.

    opens: any of these texts begins it. at_start: so does the beginning of the text, with no opener.
    call: the parts of one call, end marker included.
    before: parts between the opener and the first call.
    separator: text between calls, may be empty; None if only one call follows an opener. may_lack_separator: models
        leave it out now and then.
    closes: closing texts in order, each of which may be missing.
    """

    call: tuple[Part, ...]
    opens: tuple[str, ...] = ()
    at_start: bool = False
    before: tuple[Part, ...] = ()
    separator: str | None = None
    may_lack_separator: bool = False
    closes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """A format. layouts: tried in order where several have the same opener; the first that fits is taken.

    writing: what `structure` makes a model write. writing_auto: the same amid other text, where that is another form.
    Raises ValueError if an opener is a part of another.
    """

    layouts: tuple[Layout, ...]
    writing: Writing
    writing_auto: Writing | None = None

    def __post_init__(self) -> None:
        openers = {opener for layout in self.layouts for opener in layout.opens}
        for one in openers:
            if not one or any(one in other for other in openers - {one}):
                raise ValueError(f"opener {one!r} is empty or a part of another opener")


class JsonToolParser(ToolParser):
    """A tool parser whose format is `calls`. Settings: `core.parsing.settings.CallSettings`."""

    calls: ClassVar[JsonCalls]

    def __init__(self, ctx: PluginContext | None = None) -> None:
        super().__init__(ctx)
        self._hold = hold_of(self.ctx.settings)

    def stream(self, tools: Sequence[Tool]) -> ParserStream:
        """See the interface. Names that `tools` lack are passed on: what to do with them is core's policy."""
        from core.parsing.call_stream import CallStream

        return CallStream(self.calls, self._hold)

    def structure(self, tools: Sequence[Tool], choice: ToolChoice) -> Structure | None:
        """See the interface."""
        writing = self.calls.writing
        if choice.mode == "auto" and self.calls.writing_auto is not None:
            writing = self.calls.writing_auto
        return written_structure(writing, tools, choice)
