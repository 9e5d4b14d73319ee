"""Names as they come through the environment. Imports nothing, so that discovery stays light."""

from __future__ import annotations

import re


def fold(name: str) -> str:
    """How names are compared that came through the environment: lower case, and what is no letter or digit is "_";
    the ":" and "/" of full names are "__"."""
    return re.sub(r"[^a-z0-9_]", "_", name.lower().replace(":", "__").replace("/", "__"))
