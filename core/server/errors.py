"""Errors as HTTP: one shape, OpenAI's, for every route."""

from __future__ import annotations

from typing import Any

from core.interfaces.errors import CoreError, EngineDead, EngineError, Overloaded, RequestError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    503: "service_unavailable",
}


class ClientGone(Exception):
    """The client closed the connection before the answer was complete."""


class NotReady(EngineError):
    """The server is loading or shutting down."""


def body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: CoreError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(status, body, headers) of an error."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, RequestError):
        return error.status, body(message, error.status, param=error.param, code=error.code), {}
    if isinstance(error, Overloaded):
        return 429, body(message, 429, code="overloaded"), {"retry-after": str(error.retry_after_s)}
    if isinstance(error, EngineDead):
        return 503, body(message, 503, code="engine_dead"), {"retry-after": "5"}
    if isinstance(error, NotReady):
        return 503, body(message, 503, code="not_ready"), {"retry-after": "1"}
    return 500, body(message, 500, code="engine_error" if isinstance(error, EngineError) else None), {}
