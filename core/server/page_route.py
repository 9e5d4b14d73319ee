"""The playground at /: a page and its files, no build step, nothing from elsewhere."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from core.frontend.parameters import PARAMETERS, Dialect
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
TABLE = "parameters.json"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".json": "application/json"}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # kept, but asked for anew each time: the entity tag says whether it has changed
}

# Field of SamplingParams -> (least, most, whether least itself is out), for what the page offers to type. None: no
# such end. `SamplingParams` checks what is sent.
_EXACT = 2**53 - 1  # whole numbers beyond it change on their way through a browser
RANGES: dict[str, tuple[float, float | None, bool]] = {
    "max_tokens": (1, None, False),
    "min_tokens": (0, None, False),
    "temperature": (0, 100, False),
    "top_p": (0, 1, True),
    "top_k": (-1, None, False),
    "min_p": (0, 1, False),
    "frequency_penalty": (-2, 2, False),
    "presence_penalty": (-2, 2, False),
    "repetition_penalty": (0, 2, True),
    "seed": (-_EXACT, _EXACT, False),
}
_LEFT_OUT = frozenset({"n"})  # the page shows one answer
_KINDS: dict[Any, str] = {
    int: "integer", float: "number", bool: "boolean", list[int]: "integers", dict[int, float]: "object",
    str | list[str]: "strings", list[str]: "strings",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    tag: str


def routes() -> APIRouter:
    """The router of this family."""
    files = _files()
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _reply(request, files[INDEX])

    @router.get("/page/{name}", include_in_schema=False)
    async def page(request: Request, name: str) -> Response:
        if name not in files:
            raise RequestError(f"there is no page {name!r}", status=404)
        return _reply(request, files[name])

    return router


def parameter_table() -> list[dict[str, Any]]:
    """The sampling parameters of a chat completion for the page: name, kind, summary, default, range."""
    defaults = SamplingParams()
    table = []
    for parameter in PARAMETERS:
        if parameter.field in _LEFT_OUT:
            continue
        entry: dict[str, Any] = {
            "name": max(parameter.spellings(Dialect.CHAT), key=lambda name: name == parameter.field),
            "kind": _KINDS[parameter.type],
            "summary": parameter.summary,
            "default": getattr(defaults, parameter.field),
        }
        if parameter.field in RANGES:
            least, most, is_open = RANGES[parameter.field]
            entry |= {"minimum": least, "exclusive_minimum": is_open} | ({} if most is None else {"maximum": most})
        table.append(entry)
    return table


def _files() -> dict[str, _File]:
    """Everything that is served, by name: what lies in the folder, and the table of parameters."""
    contents = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
    contents[TABLE] = json.dumps({"parameters": parameter_table()}).encode()
    return {
        name: _File(
            content, f"{TYPES[Path(name).suffix]}; charset=utf-8", f'"{hashlib.sha256(content).hexdigest()[:20]}"'
        )
        for name, content in contents.items()
    }


def _reply(request: Request, file: _File) -> Response:
    """The file, or 304 if the client has it."""
    headers = {**HEADERS, "etag": file.tag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
