"""Answers that are kept in memory, bounded by number and bytes; the oldest complete ones go first."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec

from core.interfaces.errors import Overloaded, RequestError

_encode = msgspec.json.Encoder().encode
HINT = "start the server with --response-store to keep answers"
RUNNING = ("queued", "in_progress")


@dataclass(slots=True)
class Kept:
    """response: as last told. items: all that it answers, those of earlier responses included. owner: whose it is, as
    the key says; None where keys tell nobody apart. work: what makes it, in the background."""

    response: dict[str, Any]
    items: list[dict[str, Any]]
    owner: str | None = None
    work: asyncio.Task[None] | None = field(default=None, repr=False)
    size_bytes: int = 0

    @property
    def running(self) -> bool:
        """Whether the answer is still being made."""
        return self.response["status"] in RUNNING


class ResponseStore:
    """The kept answers of one server. Each counts with all that it answers, also where others share it."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        """max_count: 0 keeps none."""
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._kept: dict[str, Kept] = {}
        self.size_bytes = 0

    @property
    def on(self) -> bool:
        """Whether anything is kept."""
        return self._max_count > 0

    def __len__(self) -> int:
        return len(self._kept)

    def reserve(self) -> None:
        """Raises Overloaded if all that is kept is still being made, so that nothing could go."""
        if len(self._kept) >= self._max_count and all(kept.running for kept in self._kept.values()):
            raise Overloaded(f"{len(self._kept)} responses run in the background; no more are kept")

    def put(self, kept: Kept) -> None:
        """Keep it, or keep what became of it. The oldest go for it; what is larger than all may be is not kept."""
        name = kept.response["id"]
        if name in self._kept:
            self.size_bytes -= kept.size_bytes
        kept.size_bytes = len(_encode([kept.response, kept.items]))
        self.size_bytes += kept.size_bytes
        self._kept[name] = kept
        if kept.size_bytes > self._max_bytes and not kept.running:
            self._drop(name)
        while len(self._kept) > self._max_count or self.size_bytes > self._max_bytes:
            oldest = next((name for name, kept in self._kept.items() if not kept.running), None)
            if oldest is None:
                return
            self._drop(oldest)

    def get(self, name: str, owner: str | None = None, param: str = "response_id") -> Kept:
        """Raises RequestError if `owner` has none of this name: 404, or 400 where `param` is a field of a request."""
        kept = self._kept.get(name)
        if kept is not None and kept.owner == owner:
            return kept
        status = 404 if param == "response_id" else 400
        told = f"there is no response {name!r}" if self.on else "this server keeps no responses"
        raise RequestError(told, param=param, status=status, code="not_found", hint=None if self.on else HINT)

    async def cancel(self, name: str, owner: str | None = None) -> Kept:
        """End what makes it. Raises RequestError if it was not made in the background."""
        kept = self.get(name, owner)
        if kept.work is None:
            raise RequestError(
                "only a response made with background: true can be cancelled",
                param="response_id",
                code="not_cancellable",
            )
        if kept.running:
            kept.work.cancel()
            await asyncio.gather(kept.work, return_exceptions=True)
            if kept.running:
                kept.response = {**kept.response, "status": "cancelled"}
                self.put(kept)
        return kept

    async def delete(self, name: str, owner: str | None = None) -> None:
        """Forget it, and end what makes it."""
        if self.get(name, owner).work is not None:
            await self.cancel(name, owner)
        if name in self._kept:  # it may have gone to make room meanwhile
            self._drop(name)

    def _drop(self, name: str) -> None:
        self.size_bytes -= self._kept.pop(name).size_bytes
