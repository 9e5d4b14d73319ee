"""OpTable: named operations that a hardware or kernel package offers in place of core's references."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from core.interfaces.context import PluginContext


class OpTable(ABC):
    """A table of implementations. Names and signatures are those of `core.ops.reference`; unknown names are an
    error when the table is merged. An op may be missing: the reference serves then, which `explain` shows."""

    def __init__(self, ctx: PluginContext) -> None:
        self.ctx = ctx

    @abstractmethod
    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Name -> callable."""
