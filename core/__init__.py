"""LLM serving as a thin core with plugins.

Importing this package imports neither torch nor any plugin; `LLM` and `AsyncLLM` are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "SamplingParams", "__version__"]

if TYPE_CHECKING:
    from core.async_llm import AsyncLLM
    from core.interfaces.params import SamplingParams
    from core.llm import LLM


def __getattr__(name: str) -> Any:
    if name == "LLM":
        import os

        from core.engine.spinning import spin_briefly

        spin_briefly(os.environ)  # before torch is loaded
        from core.llm import LLM

        return LLM
    if name == "AsyncLLM":
        from core.async_llm import AsyncLLM

        return AsyncLLM
    if name == "SamplingParams":
        from core.interfaces.params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'core' has no attribute {name!r}")
