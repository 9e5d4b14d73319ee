"""The shape of an error, chosen by the path: each protocol's clients find what they know, whoever refuses."""

from __future__ import annotations

from typing import Any

from core.interfaces.errors import CoreError
from core.server import errors

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_OVERLOADED = 529  # that protocol's status where the server, not the client, is over its limit


def shaped(path: str, status: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """(status, body) of an error in the protocol that `path` belongs to. body: OpenAI's error object."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return _anthropic(status, body["error"])
    if path.startswith("/api/"):
        return status, {"error": body["error"]["message"]}
    return status, body


def described(path: str, error: CoreError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(status, body, headers) of an error in the protocol that `path` belongs to."""
    status, body, headers = errors.describe(error)
    return *shaped(path, status, body), headers


def _anthropic(status: int, error: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    if error["code"] == "overloaded":
        status = _OVERLOADED
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return status, {"type": "error", "error": {"type": kind, "message": error["message"]}}
