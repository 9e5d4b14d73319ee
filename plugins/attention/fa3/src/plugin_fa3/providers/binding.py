"""Call an operator by the names of its arguments, whatever their order and whatever else it takes.

Builds of FlashAttention-3 share a core of arguments and add their own between them. An argument that we do not use gets
its default, None if it may be None, or the value below that switches it off. One that none of this covers makes the
build unusable, and is named, before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_OFF: dict[str, Any] = {
    "attention_chunk": 0,
    "cp_rank": 0,
    "cp_world_size": 1,
    "is_rotary_interleaved": False,
    "max_seqlen_k_new": 0,
    "only_qv": False,
    "sm_margin": 0,
}


class UnknownSignature(Exception):
    """The operator takes something that this plugin does not know, or lacks what it needs."""


class Binding:
    """`binding(name=value, ...)` calls `op` with these arguments.

    schema: the operator's torch.FunctionSchema. used: names that will be given in calls.
    """

    def __init__(self, op: Callable[..., Any], schema: Any, used: Sequence[str]) -> None:
        self._op = op
        self._index = {argument.name: index for index, argument in enumerate(schema.arguments)}
        lacking = [name for name in used if name not in self._index]
        if lacking:
            raise UnknownSignature(f"{schema.name} takes no {', '.join(lacking)}")
        self._template = [None if a.name in used else _unused(a, schema.name) for a in schema.arguments]

    def __call__(self, **values: Any) -> Any:
        return self._op(*self._filled(values))

    def partial(self, *open_: str, **values: Any) -> Partial:
        """The call with `values` given, to be called with those of the names in `open_`, in their order."""
        return Partial(self._op, self._filled(values), [self._index[name] for name in open_])

    def _filled(self, values: dict[str, Any]) -> list[Any]:
        arguments = self._template.copy()
        for name, value in values.items():
            arguments[self._index[name]] = value
        return arguments


class Partial:
    """A call that is made several times with most of its arguments the same."""

    __slots__ = ("_arguments", "_op", "_places")

    def __init__(self, op: Callable[..., Any], arguments: list[Any], places: list[int]) -> None:
        self._op, self._arguments, self._places = op, arguments, places

    def __call__(self, *values: Any) -> Any:
        arguments = self._arguments.copy()
        for place, value in zip(self._places, values, strict=True):
            arguments[place] = value
        return self._op(*arguments)


def _unused(argument: Any, operator: str) -> Any:
    if argument.has_default_value():
        return argument.default_value
    if argument.name in _OFF:
        return _OFF[argument.name]
    if argument.type.kind() == "OptionalType":
        return None
    raise UnknownSignature(f"{operator} takes an argument {argument.name} that this plugin does not know")
