"""RoutePlugin: extra HTTP routes. Nothing is served unless the operator names the plugin (`--routes NAME`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from core.interfaces.context import PluginContext
from core.interfaces.params import SamplingParams

if TYPE_CHECKING:
    from fastapi import APIRouter


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A piece of an answer. text: new text, as the model wrote it. finish_reason: set on the last piece ("stop" or
    "length"). Counts are of the whole request so far."""

    text: str
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0


class ServerAccess(Protocol):
    """What a route may do with the server. Requests made through it are like a client's: same limits, same errors
    (RequestError, Overloaded, EngineDead, which core turns into HTTP answers), cancelled when the iterator is closed
    or the client of the request at hand goes. All but the first two raise EngineError while the model is not ready.
    """

    @property
    def model_name(self) -> str: ...

    @property
    def effective(self) -> Mapping[str, str]:
        """What is in effect, as in /server_info."""

    def encode(self, text: str) -> list[int]:
        """Token ids, without special tokens added."""

    def decode(self, token_ids: list[int]) -> str: ...

    def render_chat(self, messages: list[Mapping[str, Any]], tools: list[Mapping[str, Any]] | None = None) -> list[int]:
        """Token ids of a conversation in the model's own chat template."""

    def generate(self, prompt: str | list[int], params: SamplingParams) -> AsyncIterator[GeneratedText]:
        """Stream one answer. prompt: text, which gets the special tokens of a plain prompt, or token ids. params are
        taken as they stand. Errors of the request are raised when the first piece is asked for: take it before the
        answer begins, and the client gets their status."""


class RoutePlugin(ABC):
    """A set of routes, constructed once in the server's process.

    Core mounts the router behind its own authentication, size limits and error answers. A path that core serves
    already is refused at start; routes cannot replace core's. Only HTTP routes are served: no mounts, no WebSockets,
    no start-up functions.
    """

    def __init__(self, ctx: PluginContext) -> None:
        self.ctx = ctx

    @abstractmethod
    def router(self, server: ServerAccess) -> APIRouter:
        """The routes, with their full paths ("/mine/..."). Called once, before the server listens."""
