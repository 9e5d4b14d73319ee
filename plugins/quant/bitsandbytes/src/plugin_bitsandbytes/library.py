"""The bitsandbytes library, imported without what it does beside: take it from here."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Any


def _imported() -> ModuleType:
    """On CPUs with AVX512-BF16 the library asks the package `kernels`, where that is installed, to download a compiled
    kernel and runs it, and warns where it is not. A server runs no code that nobody installed: for the time of the
    import there is no such package, and the library uses its own kernel."""
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, kept = logger.level, modules.get("kernels")
    modules["kernels"] = None
    logger.setLevel(logging.ERROR)
    try:
        import bitsandbytes
    finally:
        logger.setLevel(level)
        del modules["kernels"]
        if kept is not None:
            modules["kernels"] = kept
    return bitsandbytes


bitsandbytes: Any = _imported()
functional: Any = bitsandbytes.functional
cextension: Any = bitsandbytes.cextension
