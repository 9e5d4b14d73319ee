"""Exceptions as message fields, and back: a class name of the one exception tree, never a pickle."""

from __future__ import annotations

from core.engine.messages import ErrorInfo
from core.interfaces import errors
from core.interfaces.errors import CoreError, EngineError, Overloaded, RequestError


def describe(error: BaseException) -> tuple[str, ErrorInfo]:
    """(message, info) of any exception; one that is no CoreError becomes an EngineError that names its type."""
    if isinstance(error, RequestError):
        info = ErrorInfo("RequestError", error.hint, error.param, error.code, error.status)
        return error.message, info
    if isinstance(error, Overloaded):
        return error.message, ErrorInfo("Overloaded", error.hint, retry_after_s=error.retry_after_s)
    if isinstance(error, CoreError):
        return error.message, ErrorInfo(type(error).__name__, error.hint)
    return f"{type(error).__name__}: {error}", ErrorInfo()


def restore(message: str, info: ErrorInfo | None) -> CoreError:
    """The exception that `describe` took apart; an unknown class name becomes an EngineError."""
    if info is None:
        return EngineError(message)
    if info.kind == "Overloaded":
        return Overloaded(message, retry_after_s=info.retry_after_s or 1)
    if info.kind == "RequestError":
        return RequestError(message, param=info.param, code=info.code, status=info.status or 400, hint=info.hint)
    found = getattr(errors, info.kind, None)
    if isinstance(found, type) and issubclass(found, CoreError):
        return found(message, hint=info.hint)
    return EngineError(message, hint=info.hint)
