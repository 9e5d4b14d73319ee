"""The request body. Items, tools and formats are checked by `items`, which knows the places."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from core.frontend.parameters import Dialect
from core.interfaces.params import MAX_LOGPROBS
from core.server.protocols import ProtocolBody
from core.server.schemas import with_sampling

Includable = Literal[
    "message.output_text.logprobs", "reasoning.encrypted_content", "message.input_image.image_url",
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "computer_call_output.output.image_url", "code_interpreter_call.outputs",
]  # fmt: skip


class Reasoning(BaseModel):
    """effort: "none" turns reasoning off, others turn it on and go to the chat template. summary: where reasoning is
    given: in the summary, or (without) in the content. It is the same text; nothing is summed up."""

    model_config = ConfigDict(extra="allow")
    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class Text(BaseModel):
    """format: the form of the answer."""

    model_config = ConfigDict(extra="allow")
    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptions(BaseModel):
    """include_obfuscation: padding against listeners on the line; there is none."""

    model_config = ConfigDict(extra="allow")
    include_obfuscation: bool | None = None


class ResponsesFields(ProtocolBody):
    """POST /v1/responses."""

    model: str | None = Field(None, description="The served model's name; may be left out.")
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(None, ge=1, description="Limits tools that a server runs; this one runs none.")
    reasoning: Reasoning | None = None
    text: Text | None = None
    include: list[Includable] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="Alternatives per token.")
    previous_response_id: str | None = None
    store: bool | None = Field(None, description="Keep the answer; default: if the server keeps any.")
    background: bool | None = Field(None, description="Answer at once, generate meanwhile; needs the store.")
    metadata: dict[str, str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    # Parts of the protocol that need a service of their maker: refused.
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None
    image: Any = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Extra names for the chat template.")


REFUSED = ("conversation", "prompt", "context_management", "moderation", "image")
ResponsesBody = with_sampling(ResponsesFields, Dialect.RESPONSES, "ResponsesBody")
