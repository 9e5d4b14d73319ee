"""Request bodies. What is nested deeper is checked by `convert`, which knows the places."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from core.frontend.parameters import Dialect
from core.server.protocols import ProtocolBody
from core.server.schemas import with_sampling


class Thinking(BaseModel):
    """budget_tokens is a target that nothing enforces. display "omitted": blocks without their text."""

    model_config = ConfigDict(extra="allow")
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "omitted"] | None = None


class ToolChoice(BaseModel):
    """type "tool" forces the tool `name`."""

    model_config = ConfigDict(extra="allow")
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(BaseModel):
    """A JSON schema that the answer follows."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), populate_by_name=True)
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    """effort goes to the chat template as reasoning_effort."""

    model_config = ConfigDict(extra="allow")
    effort: str | None = None
    format: OutputFormat | None = None


class ConversationFields(BaseModel):
    """What /v1/messages and /v1/messages/count_tokens share."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    model: str | None = Field(None, description="The served model's name; may be left out.")
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Extra names for the chat template.")


class MessagesFields(ConversationFields, ProtocolBody):
    """POST /v1/messages."""

    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    # Parts of the protocol that need a service of their maker: refused.
    mcp_servers: Any = None
    container: Any = None
    context_management: Any = None
    speed: Any = None
    output_format: Any = None
    prefill: Any = None


REFUSED = ("mcp_servers", "container", "context_management", "speed", "output_format", "prefill")


class CountBody(ConversationFields):
    """POST /v1/messages/count_tokens."""


MessagesBody = with_sampling(MessagesFields, Dialect.MESSAGES, "MessagesBody")
