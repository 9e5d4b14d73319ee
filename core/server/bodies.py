"""Request bodies: size, JSON, types. Every mistake is a 400 that names its field (413 for size)."""

from __future__ import annotations

import json
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from core.interfaces.errors import RequestError
from core.server.errors import ClientGone
from core.server.fields import FieldRule
from core.server.headers import header

# How gzip, zstd and zlib begin. Nothing here unpacks: a few bytes may become as many as one likes.
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"x\x01", b"x\x9c", b"x\xda")
IGNORED = "core.ignored_fields"  # key of a request's scope

M = TypeVar("M", bound=BaseModel)


async def read(request: Request, model: type[M], limit_bytes: int) -> M:
    """The body as `model`; its other fields judged by the server's rule. Raises RequestError; ClientGone if the
    connection closes meanwhile."""
    raw = await _raw(request, limit_bytes)
    try:
        body = model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise _named(error, raw) from error
    ignore(request, field_rule(request).apply(body, request.scope["path"]))
    return body


def field_rule(request: Request) -> FieldRule:
    """The server's rule for fields that a route does not model."""
    rule: FieldRule = request.app.state.field_rule
    return rule


def ignore(request: Request, names: list[str]) -> None:
    """Tell the client, by a header, that these fields count for nothing."""
    if names:
        request.scope.setdefault(IGNORED, []).extend(names)


async def _raw(request: Request, limit_bytes: int) -> bytes:
    told = header(request.scope, b"content-length") or "0"
    size = int(told) if told.isdigit() and int(told) > limit_bytes else 0
    parts: list[bytes] = []
    more = True
    while more and size <= limit_bytes:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        parts.append(part)
    if size > limit_bytes:
        raise RequestError(f"the body is larger than {limit_bytes} bytes", code="body_too_large", status=413)
    return b"".join(parts)


def _named(error: ValidationError, raw: bytes) -> RequestError:
    """The first mistake, with the field as a client would write it: messages[0].content."""
    mistakes = error.errors(include_url=False, include_input=True)
    # Where a field may have several types, each type complains; the complaint that got furthest tells most.
    same_field = [mistake for mistake in mistakes if mistake["loc"][:1] == mistakes[0]["loc"][:1]]
    first = max(same_field, key=lambda mistake: len(mistake["loc"]))
    if first["type"] == "json_invalid":
        if raw.startswith(COMPRESSED):
            told = "the body is compressed, and bodies are read as they come"
            return RequestError(told, param="content-encoding", hint="send it without compression", status=415)
        try:
            raw.decode()
            json.loads(raw)
        except UnicodeDecodeError as broken:
            return RequestError(f"the body is not valid UTF-8 (byte {broken.start})", code="invalid_utf8")
        except (ValueError, RecursionError):
            pass
        return RequestError(f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
    place = ""
    for part in first["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "list", "int") and not part[0].isupper():  # names of types
            place += f".{part}" if place else part
    if first["type"] == "missing":
        return RequestError(f"{place} is missing", param=place)
    shown = repr(first["input"])
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    where = place or "the body"
    return RequestError(f"{where} is {shown}: {first['msg'][0].lower()}{first['msg'][1:]}", param=place or None)
