"""Request bodies. Strict: a string is no number. Sampling fields come from the one parameter table.

Unknown fields are accepted, as clients send many. Fields that are known and would change the answer, but are not
supported, are refused: an answer that ignores them would be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from core.frontend.parameters import Dialect, spellings
from core.interfaces.errors import RequestError

B = TypeVar("B", bound=BaseModel)

# Field -> values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "use_beam_search": (False,),
    "beam_width": (1,),
    "length_penalty": (1, 1.0),
    "modalities": (["text"],),
    "stream_reasoning": (True,),
    "include_reasoning": (True,),
    "spaces_between_special_tokens": (True,),
    "return_hidden_states": (False,),
    "return_entropy": (False,),
    "logprob_start_len": (-1,),
    "detokenize": (True,),
}
_REFUSED = (
    *_NEUTRAL, "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "json_schema",
    "regex", "ebnf", "structural_tag", "stop_regex", "bad_words", "allowed_token_ids", "logits_processors",
    "custom_logit_processor", "watermark", "lora_path", "lora_id", "prompt_logprobs", "truncate_prompt_tokens",
    "input_embeds", "prompt_embeds", "image_data", "video_data", "audio_data", "mm_processor_kwargs", "audio",
    "functions", "function_call", "web_search_options", "chat_template", "session_params", "thinking_token_budget",
    "token_ids_logprob", "documents", "repetition_detection",
)  # fmt: skip


class StreamOptions(BaseModel):
    """include_usage: a last event with usage. continuous_usage_stats: usage in every event."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Body(BaseModel):
    """What all generation requests share."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    priority: int | None = Field(None, ge=-(2**31), lt=2**31, description="Higher runs earlier.")
    cache_salt: str | None = Field(None, description="Prefixes are shared only between requests of equal salt.")

    def given(self) -> dict[str, Any]:
        """All fields by the names that the client typed."""
        return {**(self.__pydantic_extra__ or {}), **dict(self)}

    def refuse_unsupported(self) -> None:
        """Raises RequestError for a field that would change the answer and is not supported."""
        refuse(self.__pydantic_extra__ or {})


class OpenAiBody(Body):
    """What both OpenAI families share."""

    model: str | None = Field(None, description="The served model's name; may be left out.")
    stream_options: StreamOptions | None = None
    user: str | None = None


class ChatFields(OpenAiBody):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = Field(None, description="Log-probabilities of the answer's tokens.")
    top_logprobs: int | None = Field(None, ge=0, description="Alternatives per token; needs logprobs.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(None, description="Go on with the last message instead of answering.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Extra names for the chat template.")
    reasoning_effort: str | float | None = Field(None, description="Handed to the chat template under this name.")
    separate_reasoning: bool | None = Field(None, description="Give reasoning in reasoning_content (default).")


class CompletionFields(OpenAiBody):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    best_of: int | None = None
    echo: bool | None = Field(None, description="Begin the text with the prompt.")
    suffix: str | None = None
    logprobs: int | None = Field(None, ge=0, description="Alternatives per token.")
    add_special_tokens: bool | None = Field(None, description="Begin-of-text and the like around a text prompt.")


class GenerateBody(Body):
    """POST /generate, the native route: one prompt or many."""

    text: str | list[str] | None = None
    input_ids: list[int] | list[list[int]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    rid: str | list[str] | None = None
    return_logprob: bool | None = None
    top_logprobs_num: int | None = Field(None, ge=0)
    return_text_in_logprobs: bool | None = None


class TokenizeBody(BaseModel):
    """POST /tokenize: a prompt, or messages through the chat template."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    model: str | None = None
    prompt: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False


class DetokenizeBody(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    model: str | None = None
    tokens: list[int] | list[list[int]]
    skip_special_tokens: bool = True


def with_sampling(base: type[B], dialect: Dialect, name: str) -> type[B]:
    """`base` with the parameter table's fields in the dialect's spelling."""
    fields: dict[str, Any] = {
        spelling: (parameter.type | None, Field(None, description=parameter.summary))
        for spelling, parameter in spellings(dialect).items()
    }
    return create_model(name, __base__=base, **fields)


ChatBody = with_sampling(ChatFields, Dialect.CHAT, "ChatBody")
CompletionBody = with_sampling(CompletionFields, Dialect.COMPLETIONS, "CompletionBody")


def refuse(extra: Mapping[str, Any]) -> None:
    """Raises RequestError for a field in `extra` that would change the answer and is not supported."""
    for name in _REFUSED:
        value = extra.get(name)
        # Empty counts as not given; false does not, as it may be a wish.
        if value is None or value in ("", [], {}) or value in _NEUTRAL.get(name, ()):
            continue
        raise RequestError(f"{name} is not supported yet", param=name, code="unsupported_parameter")
