"""The request log (`--log-requests`): a line when a request has come, one when it is over.

Level 0 tells facts: route, status, tokens, times. Level 1 adds the parameters of the body: its numbers, booleans and
the model's name. Level 2 adds body and reply, cut at 2048 bytes each; level 3 both whole. Headers are never logged, and
what looks like a secret is masked at any level.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from starlette.types import Message, Scope

from core.server.auth import TENANT
from core.tracing.record import RequestRecord

CUT_BYTES = 2048
MAX_LEVEL = 3
MAX_PARAMETERS = 200  # fields of a body that are looked at
MASK = "***"
_SECRET_NAMES = re.compile(
    r".*(api_?key|private_?key|secret|passw|authorization|credential|cookie|salt).*|key|token|"
    r"(access|refresh|auth|bearer|id|session)_?token",
    re.IGNORECASE,
)
_BODILESS = ("DELETE", "GET", "HEAD", "OPTIONS")
_PROBES = ("/health", "/metrics", "/ready")
# Texts that are parameters, and no content.
_PARAMETER_TEXTS = ("model", "priority", "reasoning_effort", "service_tier", "tool_choice")
log = logging.getLogger("core.requests")


class RequestLog:
    """Whether and what to log; both can be changed while the server runs. secrets: gives texts that are masked wherever
    they are found, as the server's own keys. limit: bytes of a body, which no route takes more of; none of a larger one
    is kept."""

    def __init__(
        self,
        enabled: bool = False,
        level: int = 0,
        secrets: Callable[[], Iterable[str]] = tuple,
        limit: int = 32 << 20,
    ) -> None:
        self.enabled = enabled
        self.level = level
        self.limit = limit
        self._secrets = secrets

    def begin(self, scope: Scope) -> LoggedRequest | None:
        """A request has come; None if it is a probe, which come every few seconds and tell nothing."""
        if not self.enabled or scope["path"] in _PROBES:
            return None
        return LoggedRequest(self, scope, self.level)

    def hidden(self, text: str) -> str:
        """`text` without the server's secrets."""
        return hidden(text, self._secrets())


class LoggedRequest:
    """One request. Fed with what passes by."""

    def __init__(self, owner: RequestLog, scope: Scope, level: int) -> None:
        self._owner = owner
        self._scope = scope
        self._level = level
        self._body: list[bytes] = []
        self._reply: list[bytes] = []
        self._num_read = self._num_sent = 0
        self._told = False
        if scope["method"] in _BODILESS:
            self._begun()

    def read(self, message: Message) -> None:
        """A part of the body."""
        part = message.get("body", b"")
        self._num_read += len(part)
        if self._num_read > self._owner.limit:
            self._body = []
        elif self._level:
            self._body.append(part)
        if not message.get("more_body", False):
            self._begun()

    def sent(self, message: Message) -> None:
        """A part of the reply."""
        part = message.get("body", b"")
        if self._level == MAX_LEVEL or (self._level == 2 and self._num_sent <= CUT_BYTES):
            self._reply.append(part)
        self._num_sent += len(part)

    def end(self, record: RequestRecord, status: int, end_s: float) -> None:
        """The response has ended."""
        told = record.generations
        first = [generation.first_s for generation in told if generation.first_s is not None]
        fields: dict[str, Any] = {**self._where(), "status": status, "seconds": round(end_s - record.start_s, 6)}
        if tenant := self._scope.get(TENANT):
            fields["tenant"] = tenant
        if told:
            fields |= {
                "prompt_tokens": sum(generation.prompt_tokens for generation in told),
                "cached_tokens": sum(generation.cached_tokens for generation in told),
                "generated_tokens": sum(generation.generated_tokens for generation in told),
                "finish_reasons": [generation.finish_reason for generation in told],
            }
        if first:
            fields["first_token_seconds"] = round(min(first) - record.start_s, 6)
        if self._level >= 2:
            fields["reply"] = self._text(b"".join(self._reply), self._num_sent)
        log.info("request finished", extra={"fields": fields})

    def _where(self) -> dict[str, Any]:
        """What tells one request from another. Not the query: people put keys there."""
        return {"method": self._scope["method"], "path": self._owner.hidden(self._scope["path"])[:CUT_BYTES]}

    def _begun(self) -> None:
        if self._told:
            return
        self._told = True
        client = self._scope.get("client")
        fields: dict[str, Any] = {**self._where(), "client": client[0] if client else None, "bytes": self._num_read}
        if self._num_read > self._owner.limit:
            fields["body"] = "too large"
        elif self._level and self._num_read:
            raw = b"".join(self._body)
            self._body = []
            try:
                fields |= self._shown(json.loads(raw))
            except (ValueError, RecursionError):  # or nested deeper than it can be masked
                fields["body"] = "no JSON"  # whatever it is, what is secret in it is not known
        log.info("request received", extra={"fields": fields})

    def _shown(self, body: Any) -> dict[str, Any]:
        """What is told of a body. Raises RecursionError."""
        fields: dict[str, Any] = {"parameters": parameters(body)}
        if self._level >= 2:
            shown = json.dumps(masked(body), ensure_ascii=False).encode(errors="replace")
            fields["body"] = self._text(shown, len(shown))
        return fields

    def _text(self, raw: bytes, size: int) -> str:
        limit = len(raw) if self._level == MAX_LEVEL else CUT_BYTES
        # Secrets go before the cut: half a key is a key too many.
        text = self._owner.hidden(raw.decode(errors="replace"))
        shown = text.encode(errors="replace")[:limit].decode(errors="ignore")
        return shown if size <= limit else f"{shown}... ({size} bytes)"


class AccessLines(logging.Filter):
    """uvicorn's own line for each request, at level debug: without the query, where people put keys, and masked."""

    def __init__(self, secrets: Callable[[], Iterable[str]]) -> None:
        super().__init__()
        self._secrets = secrets

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                hidden(value.partition("?")[0], self._secrets()) if isinstance(value, str) else value
                for value in record.args
            )
        return True


def hidden(text: str, secrets: Iterable[str]) -> str:
    """`text` without `secrets`."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def parameters(body: Any) -> dict[str, Any]:
    """The numbers and booleans of a body, and those texts that are no content."""
    if not isinstance(body, dict):
        return {}
    found: dict[str, Any] = {}
    for name, value in islice(body.items(), MAX_PARAMETERS):
        if _SECRET_NAMES.fullmatch(name):
            continue
        if isinstance(value, bool | int | float) or (name in _PARAMETER_TEXTS and isinstance(value, str)):
            found[name] = value
        elif isinstance(value, dict) and name in ("sampling_params", "stream_options", "chat_template_kwargs"):
            found[name] = parameters(value)
    return found


def masked(value: Any) -> Any:
    """`value` with the values of fields that sound like secrets replaced, at any depth."""
    if isinstance(value, dict):
        return {name: MASK if _SECRET_NAMES.fullmatch(name) else masked(item) for name, item in value.items()}
    if isinstance(value, list):
        return [masked(item) for item in value]
    return value
