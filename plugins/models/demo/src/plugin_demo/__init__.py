"""The bundled demo model: where its files are. The parsers have a module each.

What lives here: the packaged checkpoint (`files/`) and the parsers of its output. How it was made is in the
repository's folder `training/`, which is not installed.
"""

from __future__ import annotations

from pathlib import Path


def checkpoint() -> Path:
    """The folder of the packaged checkpoint, in Hugging Face layout."""
    return Path(__file__).parent / "files"
