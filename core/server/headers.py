"""Headers of a request, looked up in its scope: most requests are asked for a few that they do not have."""

from __future__ import annotations

from starlette.types import Scope


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of this name (in small letters), or None."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None
