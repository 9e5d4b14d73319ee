"""Tables of named operations, merged once when a model is built."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from core.interfaces.errors import PluginError
from core.ops.reference import REFERENCES

# Ops that only work together: a packed weight is readable only by the operations it was packed for.
_PACK = "pack_linear_weight"
_READERS = ("linear", "fused_linear")


def build_ops(*tables: Mapping[str, Callable[..., Any]]) -> Mapping[str, Callable[..., Any]]:
    """The references of `core.ops.reference` with `tables` laid over them, later tables winning. Read-only.

    Raises PluginError when a table names an operation that core does not have, holds something that is not
    callable, or replaces only some of what reads packed weights and packs them: `fused_linear` may be left out.
    """
    merged: dict[str, Callable[..., Any]] = dict(REFERENCES)
    for table in tables:
        for name, op in table.items():
            if name not in REFERENCES:
                close = difflib.get_close_matches(name, REFERENCES, n=1)
                raise PluginError(
                    f"an op table replaces {name!r}, which core does not know",
                    hint=(f"did you mean {close[0]!r}? " if close else "")
                    + f"Known operations: {', '.join(sorted(REFERENCES))}",
                )
            if not callable(op):
                raise PluginError(
                    f"an op table gives {op!r} for {name!r}, which is not callable",
                    hint=f"give a function with the signature of core.ops.reference.{name}",
                )
        given = [name for name in (_PACK, *_READERS) if name in table]
        missing = [name for name in (_PACK, "linear") if name not in table]
        if given and missing:
            raise PluginError(
                f"an op table replaces {given[0]!r} without {missing[0]!r}",
                hint=f"give both: what {_PACK!r} returns is only for the operations beside it",
            )
        if given:  # whatever an earlier table has for these reads other weights
            merged.update({name: REFERENCES[name] for name in _READERS})
        merged.update(table)
    return MappingProxyType(merged)
