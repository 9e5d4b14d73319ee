"""BundledCheckpoint: a checkpoint shipped inside a package, usable by its name in `--model`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class BundledCheckpoint(Protocol):
    """A callable entry point that returns the checkpoint's folder (Hugging Face layout).

    The manifest's capability `default = true` marks the one used when no `--model` is given.
    """

    def __call__(self) -> Path: ...
