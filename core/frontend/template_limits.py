"""What a chat template may use up: loop rounds, calls, characters, seconds. A template comes with a checkpoint, its
input with a request; neither may hold up the server, which renders between two answers.

Jinja's sandbox keeps a template from Python's internals. It does not keep it from `'a' * 10**9`, nor from loops in
loops.
Strings are measured before they are made where an operand alone could make them huge, else right after.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_CHARS = 1 << 25  # of any text, and of the prompt
MAX_STEPS = 2_000_000  # rounds of all loops, and calls
MAX_SECONDS = 10.0
MAX_WIDTH = 10_000  # of padding and indentation
MAX_INT_BITS = 4096
_CHECK_EVERY = 4096  # steps between two looks at the clock
_COUNTED, _BOUNDED = "_core_counted", "_core_bounded"
_WIDTH_FILTERS = ("batch", "center", "format", "indent", "slice", "tojson", "truncate", "wordwrap")
# No checkpoint needs filler text, and its size is an argument.
_REMOVED = ("lipsum",)


@dataclass(slots=True)
class Budget:
    """Of one rendering."""

    clock: Callable[[], float] = time.monotonic
    _left: int = MAX_STEPS
    _next_look: int = MAX_STEPS - _CHECK_EVERY
    _end_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._end_s = self.clock() + MAX_SECONDS

    def spend(self, steps: int = 1) -> None:
        """Raises SecurityError when nothing is left."""
        self._left -= steps
        if self._left < 0:
            raise SecurityError(f"it takes more than {MAX_STEPS} steps")
        if self._left <= self._next_look:
            self._next_look = self._left - _CHECK_EVERY
            if self.clock() > self._end_s:
                raise SecurityError(f"it takes longer than {MAX_SECONDS:g} s")


budget: ContextVar[Budget | None] = ContextVar("template_budget", default=None)


def _spend(steps: int = 1) -> None:
    left = budget.get()
    if left is not None:
        left.spend(steps)


@pass_context  # so that Jinja does not evaluate it when it compiles
def _counted(context: Any, values: Any) -> Any:
    """What a loop goes over."""
    if isinstance(values, Sized):
        _spend(len(values))
        return values
    return _counting(values)


def _counting(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spend()
        yield value


def _bounded(value: Any) -> Any:
    """`value`, if it is not too long."""
    if isinstance(value, str | list | tuple) and len(value) > MAX_CHARS:
        raise _too_long()
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        raise SecurityError("a number is too large")
    return value


def _too_long() -> SecurityError:
    return SecurityError(f"it makes a text of more than {MAX_CHARS} characters")


def _concat(parts: Iterable[str]) -> str:
    """Join what a template or a macro gives."""
    size, taken = 0, []
    for part in parts:
        size += len(part)
        if size > MAX_CHARS:
            raise _too_long()
        taken.append(part)
    return "".join(taken)


def _check_format(text: str) -> None:
    """Raises SecurityError if a format string asks for a width beyond MAX_WIDTH, or takes one from its arguments."""
    digits = 0
    for sign in text:
        digits = digits + 1 if sign.isdigit() else 0
        if digits > 4:
            raise SecurityError("a format string holds a number of more than four digits")
    if "*" in text or ":{" in text:
        raise SecurityError("a format string takes its width from an argument")


def _check_numbers(values: Iterable[Any]) -> None:
    """Raises SecurityError if one is a width beyond MAX_WIDTH."""
    for value in values:
        if isinstance(value, int | float) and abs(value) > MAX_WIDTH:
            raise SecurityError(f"{value} is more than {MAX_WIDTH}, the most that a width may be")
        if isinstance(value, str) and len(value) > MAX_WIDTH:
            raise SecurityError(f"a text stands in place of a width and is longer than {MAX_WIDTH}")


def _check_replace(text: Any, old: Any, new: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    if len(text) + text.count(old) * max(0, len(new) - len(old)) > MAX_CHARS:
        raise _too_long()


def _check_join(separator: Any, values: Any) -> Iterable[Any]:
    taken, size = [], 0
    for value in values:
        _spend()
        size += len(separator) + (len(value) if isinstance(value, str) else 0)
        if size > MAX_CHARS:
            raise _too_long()
        taken.append(value)
    return taken


class _Limiting(NodeTransformer):
    """Loops are counted, and what `~` makes is measured."""

    def visit_For(self, node: nodes.For, *args: Any, **kwargs: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node, *args, **kwargs)
        node.iter = _filter(_COUNTED, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat, *args: Any, **kwargs: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node, *args, **kwargs)
        return _filter(_BOUNDED, node)


def _filter(name: str, node: nodes.Node) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with limits. They count where `budget` is set; those of sizes always."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_concat)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in _REMOVED:
            self.globals.pop(name, None)
        self.filters[_COUNTED] = _counted
        self.filters[_BOUNDED] = _bounded

    def limit_filters(self) -> None:
        """Call when all filters are there."""
        for name in _WIDTH_FILTERS:
            self.filters[name] = _widths_checked(self.filters[name], is_format=name == "format")
        self.filters["replace"] = _replace_checked(self.filters["replace"])
        self.filters["join"] = _join_checked(self.filters["join"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Limiting().visit(tree)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Raises SecurityError before an operator makes something huge."""
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int) and len(many) * times > MAX_CHARS:
                    raise _too_long()
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MAX_INT_BITS:
                raise SecurityError("a number is too large")
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        return _bounded(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Of functions, macros and methods."""
        _spend()
        of, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(__obj, LoopContext) and args and isinstance(args[0], Sized):
            _spend(len(args[0]))
        elif isinstance(of, str):
            if name == "replace" and len(args) >= 2:
                _check_replace(of, args[0], args[1])
            elif name == "join" and args:
                args = (_check_join(of, args[0]), *args[1:])
            elif name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
                _check_numbers((*args, *kwargs.values()))
        return _bounded(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` and `format_map`."""
        made = super().wrap_str_format(value)
        if made is not None:
            _check_format(value.__self__)
        return made


def _widths_checked(wrapped: Callable[..., Any], is_format: bool) -> Callable[..., Any]:
    def checked(*args: Any, **kwargs: Any) -> Any:
        # The first is the value, or Jinja's context before it.
        skipped = 2 if hasattr(wrapped, "jinja_pass_arg") else 1
        if is_format:
            _check_format(str(args[skipped - 1]))
        else:
            _check_numbers((*args[skipped:], *kwargs.values()))
        return _bounded(wrapped(*args, **kwargs))

    return _like(checked, wrapped)


def _replace_checked(wrapped: Callable[..., Any]) -> Callable[..., Any]:
    def checked(first: Any, text: Any, old: Any, new: Any, count: int | None = None) -> Any:
        _check_replace(text, old, new)
        return wrapped(first, text, old, new, count)

    return _like(checked, wrapped)


def _join_checked(wrapped: Callable[..., Any]) -> Callable[..., Any]:
    def checked(first: Any, value: Any, d: Any = "", attribute: Any = None) -> Any:
        if attribute is None:
            value = _check_join(str(d), value)
        return _bounded(wrapped(first, value, d, attribute))

    return _like(checked, wrapped)


def _like(made: Callable[..., Any], wrapped: Callable[..., Any]) -> Callable[..., Any]:
    """`made`, given the same by Jinja as `wrapped` is."""
    passes = getattr(wrapped, "jinja_pass_arg", None)
    if passes is not None:
        made.jinja_pass_arg = passes  # type: ignore[attr-defined]
    return made
