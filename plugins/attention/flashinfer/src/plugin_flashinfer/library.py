"""Finding FlashInfer and what it compiles with. Its import takes seconds, and only `wrapper` does it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from core.interfaces.errors import ConfigError


def missing() -> str | None:
    """What this machine lacks, with the way out, or None."""
    if importlib.util.find_spec("flashinfer") is None:
        return "flashinfer is not installed: pip install flashinfer-python"
    if importlib.util.find_spec("flashinfer_jit_cache") is None and not has_compiler():
        return (
            "flashinfer compiles its kernels on first use and there is no nvcc: install the CUDA toolkit and set "
            "CUDA_HOME, or pip install flashinfer-jit-cache"
        )
    return None


def has_compiler() -> bool:
    """Where FlashInfer looks: CUDA_HOME or CUDA_PATH, the search path, then the usual folder."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return shutil.which("nvcc") is not None or any(home and (Path(home) / "bin" / "nvcc").exists() for home in homes)


def wrapper() -> Any:
    """FlashInfer's class for attention over pages. Raises ConfigError if the import fails."""
    try:
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper  # type: ignore[import-not-found]
    except Exception as exc:  # a package it needs, or a torch it was not made for
        raise ConfigError(
            f"flashinfer cannot be imported: {type(exc).__name__}: {exc}",
            field="engine.attention_backend",
            value="flashinfer",
            hint="pip install --upgrade flashinfer-python, or use --attention-backend auto",
        ) from exc
    return BatchPrefillWithPagedKVCacheWrapper
