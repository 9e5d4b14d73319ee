"""Request bodies. Strict: a string is no number. Sampling fields come from the one parameter table.

Fields that a model lacks are kept as extras, for `core.server.fields` to judge.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from core.frontend.parameters import Dialect, spellings
from core.server.structured import StructuredFields

B = TypeVar("B", bound=BaseModel)


class StreamOptions(BaseModel):
    """include_usage: a last event with usage. continuous_usage_stats: usage in every event."""

    model_config = ConfigDict(extra="allow")
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ProcessorFields(BaseModel):
    """Plugins that edit logits, by name, and other servers' fields that stand for one."""

    logit_processors: list[dict[str, Any] | str] | None = Field(
        None, description="Plugins that edit logits, in order: name and arguments of each; the operator enables them."
    )
    thinking_token_budget: int | None = Field(
        None, ge=0, description="Most tokens of reasoning; needs the logit processor thinking_budget."
    )
    max_thinking_tokens: int | None = Field(None, ge=0, description="Another name of thinking_token_budget.")


class Body(StructuredFields, ProcessorFields):
    """What all generation requests share."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    priority: int | None = Field(None, ge=-(2**31), lt=2**31, description="Higher runs earlier.")
    cache_salt: str | None = Field(None, description="Prefixes are shared only between requests of equal salt.")
    extra_key: str | None = Field(None, description="Another name of cache_salt; both together count as one.")
    timeout: float | None = Field(None, gt=0, lt=1e9, description="Seconds after which the request ends with an error.")
    rid: str | list[str] | None = Field(None, description="The client's own id, for /abort_request; one per prompt.")
    request_id: str | None = Field(None, description="Another name of rid.")
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="Keep only the last so many tokens of the prompt; -1: as many as fit."
    )
    return_hidden_states: bool | Literal["last"] | None = Field(
        None, description="The final hidden state of each generated token, with true of the prompt's tokens too."
    )

    @property
    def salt(self) -> str:
        """What cached prefixes are kept apart by, beside the model."""
        return "\0".join(part for part in (self.cache_salt, self.extra_key) if part)

    @property
    def hidden_states(self) -> Literal["last", "all"] | None:
        """As in SamplingParams."""
        if not self.return_hidden_states:
            return None
        return "last" if self.return_hidden_states == "last" else "all"

    def given(self) -> dict[str, Any]:
        """The fields that the client gave, by the names that it typed."""
        return given_fields(self)


class OpenAiBody(Body):
    """What both OpenAI families share."""

    model: str | None = Field(None, description="The served model's name; may be left out.")
    stream_options: StreamOptions | None = None


class ChatFields(OpenAiBody):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = Field(None, description="Log-probabilities of the answer's tokens.")
    top_logprobs: int | None = Field(None, ge=0, description="Alternatives per token; needs logprobs.")
    prompt_logprobs: int | None = Field(None, ge=-1, description="Log-probabilities of the prompt; alternatives each.")
    return_token_ids: bool | None = Field(None, description="Token ids of prompt and answer too.")
    return_prompt_token_ids: bool | None = Field(None, description="The prompt's token ids too.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(None, description="Go on with the last message instead of answering.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Extra names for the chat template.")
    reasoning_effort: str | float | None = Field(
        None, description="Handed to the chat template under this name; none: its switches of thinking are off."
    )
    thinking: bool | dict[str, Any] | None = Field(
        None, description="The template's switches of thinking: true or false, or as {type: enabled | disabled}."
    )
    separate_reasoning: bool | None = Field(None, description="Give reasoning in reasoning_content (default).")


class CompletionFields(OpenAiBody):
    """POST /v1/completions."""

    prompt: (
        str | Annotated[list[str], Field(fail_fast=True)] | list[int] | list[list[int]]
    )  # ids are not refused one by one as texts
    best_of: int | None = Field(None, ge=1, description="Samples to draw; the n likeliest a token are returned.")
    echo: bool | None = Field(None, description="Begin the text with the prompt.")
    suffix: str | None = Field(None, description="Text after the gap that the answer fills, if the model can.")
    prompt_logprobs: int | None = Field(None, ge=-1, description="Log-probabilities of the prompt; alternatives each.")
    return_token_ids: bool | None = Field(None, description="Token ids of prompt and answer too.")
    return_prompt_token_ids: bool | None = Field(None, description="The prompt's token ids too.")
    logprobs: int | None = Field(None, ge=0, description="Alternatives per token.")
    add_special_tokens: bool | None = Field(None, description="Begin-of-text and the like around a text prompt.")


class GenerateBody(Body):
    """POST /generate, the native route: one prompt or many."""

    text: str | list[str] | None = None
    input_ids: list[int] | list[list[int]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    return_logprob: bool | None = Field(None, description="Log-probabilities of the answer's tokens.")
    logprob_start_len: int | None = Field(
        None,
        ge=-1,
        lt=2**31,
        description="With return_logprob: first prompt token whose log-probability is returned; -1: none.",
    )
    top_logprobs_num: int | None = Field(None, ge=0, description="Alternatives per token; needs return_logprob.")
    return_text_in_logprobs: bool | None = Field(None, description="Tokens as text beside their ids.")
    return_prompt_token_ids: bool | None = Field(None, description="The prompt's token ids too.")


class TokenizeBody(BaseModel):
    """POST /tokenize: a prompt, or messages through the chat template."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    model: str | None = None
    prompt: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    model: str | None = None
    tokens: list[int] | list[list[int]]
    skip_special_tokens: bool | None = None


def given_fields(body: BaseModel) -> dict[str, Any]:
    """The fields of a body that the client gave, those included that the model lacks."""
    modelled, set_by_client = body.__dict__, body.model_fields_set
    given = {name: modelled[name] for name in modelled if name in set_by_client}
    return {**(body.__pydantic_extra__ or {}), **given}


def with_sampling(base: type[B], dialect: Dialect, name: str) -> type[B]:
    """`base` with the parameter table's fields in the dialect's spelling."""
    fields: dict[str, Any] = {
        spelling: (parameter.type | None, Field(None, description=parameter.summary))
        for spelling, parameter in spellings(dialect).items()
    }
    return create_model(name, __base__=base, **fields)


ChatBody = with_sampling(ChatFields, Dialect.CHAT, "ChatBody")
CompletionBody = with_sampling(CompletionFields, Dialect.COMPLETIONS, "CompletionBody")
