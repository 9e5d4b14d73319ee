"""Request bodies. Messages are checked by `convert`, which knows the places."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from core.server.protocols import ProtocolBody

Effort = Literal["low", "medium", "high"]


class GenerationBody(ProtocolBody):
    """What /api/chat and /api/generate share. stream: lines of JSON, where it is not false. keep_alive changes nothing:
    the model stays loaded."""

    model: str = Field(min_length=1)
    options: dict[str, Any] | None = Field(None, description="Sampling, by this protocol's names.")
    format: str | dict[str, Any] | None = Field(None, description='"json", or a JSON schema.')
    think: bool | Effort | None = Field(None, description="Switch of the chat template; true needs a parser.")
    keep_alive: float | str | None = None
    logprobs: bool | None = Field(None, description="Log-probabilities of the answer's tokens.")
    top_logprobs: int | None = Field(None, ge=0, description="Alternatives per token; needs logprobs.")


class ChatBody(GenerationBody):
    """POST /api/chat. Without messages nothing is generated; clients load a model so."""

    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


class GenerateBody(GenerationBody):
    """POST /api/generate: a prompt as the user's message, or `raw` as it stands."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = Field(None, description="Continue the prompt as it stands, without the chat template.")
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[Any] | None = None


class ShowBody(BaseModel):
    """POST /api/show."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
