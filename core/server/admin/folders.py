"""Folders that a request may name: below one that the operator has configured, and nowhere else."""

from __future__ import annotations

from pathlib import Path

from core.interfaces.errors import RequestError


def below(root: str | None, given: str | None) -> Path:
    """The folder `given`, relative to `root` or absolute, links resolved. Raises RequestError if it is outside."""
    if not root:
        raise RequestError(
            "this server writes no profiles", code="unsupported", hint="start it with --profile-dir FOLDER"
        )
    top = Path(root).resolve()
    if given is None:
        return top
    if "\0" in given:
        raise RequestError("output_dir has a NUL character", param="output_dir")
    try:
        folder = (top / given).resolve()
    except (OSError, RuntimeError) as error:
        raise RequestError(f"output_dir is {given!r}: {error}", param="output_dir") from error
    if not folder.is_relative_to(top):
        raise RequestError(f"output_dir is {given!r}, which is not below {root}", param="output_dir")
    return folder
