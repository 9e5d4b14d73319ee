"""What becomes of request fields that a route does not model. One rule for every route:

1. A field that is known to change nothing here (who asks, how it is billed) is accepted: INERT.
2. A field that is known and would change the answer, but is not supported, is refused, unless it has the value that
   changes nothing: REFUSED.
3. Any other field is unknown. Setting `unknown_fields`: "warn" answers all the same, names it in the response header
   `core-ignored-fields` and logs it once; "refuse" answers 400.

So nothing that a client sends is dropped without a word.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from core.interfaces.errors import RequestError

UnknownFields = Literal["warn", "refuse"]
HEADER = "core-ignored-fields"
MAX_LOGGED = 1000  # names that clients make up must not fill the memory
MAX_NAMED = 20
MAX_UNMODELLED = 1000  # fields of a body; nobody has so many, and each takes time
log = logging.getLogger("core.server")

# Field -> what it is about. None of them may change an answer.
INERT: dict[str, str] = {
    "user": "who asks",
    "safety_identifier": "who asks",
    "metadata": "the client's own notes",
    "store": "keeping the answer for the client's later use elsewhere",
    "service_tier": "billing and queueing of a hosted service",
    "prompt_cache_key": "routing between a hosted service's caches",
    "prompt_cache_retention": "how long a hosted service keeps its cache",
    "verbosity": "a hint to hosted models",
    "prediction": "a guess that may make a hosted service faster",
    "conversation_id": "routing",
    "routing_key": "routing",
    "custom_labels": "labels for a router's metrics",
    "include": "parts of replies that are always there",
    "betas": "versions of a hosted service's protocol",
    "kv_hints": "hints to a router's caches",
    "stream_interval": "how many tokens an event carries",
    "guided_decoding_backend": "which grammar backend; the server has one",
}

# Field -> values that change nothing; others are refused.
REFUSED: dict[str, tuple[Any, ...]] = {
    "thinking": (),
    "enable_thinking": (),
    "task": (),
    "input_ids": (),
    "use_beam_search": (False,),
    "beam_width": (1,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "modalities": (["text"],),
    "stream_reasoning": (True,),
    "include_reasoning": (True,),
    "spaces_between_special_tokens": (True,),
    "return_entropy": (False,),
    "return_routed_experts": (False,),
    "routed_experts_start_len": (0,),
    "return_indexer_topk": (False,),
    "return_sampling_mask": (False,),
    "sampling_logprobs_mode": (),
    "return_flat_raw_top_logprobs": (False,),
    "return_flat_raw_output_top_logprobs": (False,),
    "return_flat_raw_top_logprobs_b64": (False,),
    "return_bytes": (False,),
    "return_meta_info": (False,),
    "return_cached_tokens_details": (False,),
    "return_spec_tokens_details": (False,),
    "return_input_ids_in_sglext": (False,),
    "return_output_ids_in_sglext": (False,),
    "return_tokens_as_token_ids": (False,),
    "echo": (False,),
    "require_reasoning": (False,),
    "background": (False,),
    "no_logs": (False,),
    "log_metrics": (True,),
    "data_parallel_rank": (0,),
    "routed_dp_rank": (0,),
    "disagg_prefill_dp_rank": (),
    "decode_tp_size": (),
    "bootstrap_host": (),
    "bootstrap_port": (),
    "bootstrap_room": (),
    "bootstrap_pair_key": (),
    "kv_transfer_params": (),
    "vllm_xargs": (),
    "guided_whitespace_pattern": (),
    "detokenize": (True,),
    "logits_processors": (),
    "custom_logit_processor": (),
    "custom_params": (),
    "watermark": (),
    "lora_path": (),
    "lora_id": (),
    "input_embeds": (),
    "prompt_embeds": (),
    "image_data": (),
    "video_data": (),
    "audio_data": (),
    "mm_hashes": (),
    "mm_content_hashes": (),
    "use_audio_in_video": (False,),
    "video_config": (),
    "images_config": (),
    "max_dynamic_patch": (),
    "min_dynamic_patch": (),
    "image_max_dynamic_patch": (),
    "image_min_dynamic_patch": (),
    "video_max_dynamic_patch": (),
    "video_min_dynamic_patch": (),
    "media_io_kwargs": (),
    "multi_item_delimiter_indices": (),
    "token_indices_to_pool": (),
    "positional_embed_overrides": (),
    "mm_processor_kwargs": (),
    "audio": (),
    "functions": (),
    "function_call": (),
    "web_search_options": (),
    "chat_template": (),
    "session_params": (),
    "session_id": (),
    "thinking_token_budget": (),
    "max_thinking_tokens": (),
    "token_ids_logprob": (),
    "documents": (),
    "repetition_detection": (),
}
_PROCESSORS = (
    "code does not come with a request; use logit_processors, which names processors that the operator has enabled"
)
_INSTEAD = {
    "thinking": "chat_template_kwargs sets what chat templates know of it",
    "enable_thinking": "give it in chat_template_kwargs",
    "input_ids": "/generate takes token ids",
    "return_meta_info": "/generate gives meta_info",
    "return_input_ids_in_sglext": "return_token_ids gives the ids of prompt and answer",
    "return_output_ids_in_sglext": "return_token_ids gives the ids of prompt and answer",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "chat_template": "templates come from the operator; chat_template_kwargs sets their variables",
    "logits_processors": _PROCESSORS,
    "custom_logit_processor": _PROCESSORS,
    "custom_params": "give a processor its arguments with it, in logit_processors",
}


def judge(fields: Mapping[str, Any], unknown: UnknownFields, known: Mapping[str, Any] = {}) -> list[str]:
    """Apply the rule to fields that nothing models; returns the unknown ones. known: fields that the route has, for a
    hint. Raises RequestError for a refused field."""
    ignored = []
    for name, value in fields.items():
        plain = name.rpartition(".")[2]
        if plain in INERT:
            continue
        if plain in REFUSED:
            # Empty counts as not given; false does not, as it may be a wish.
            if value is None or value in ("", [], {}) or value in REFUSED[plain]:
                continue
            hint = _INSTEAD.get(plain)
            raise RequestError(f"{name} is not supported", param=name, code="unsupported_parameter", hint=hint)
        ignored.append(name)
    if ignored and unknown == "refuse":
        close = difflib.get_close_matches(ignored[0], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "leave it out"
        raise RequestError(f"there is no field {ignored[0]!r}", param=ignored[0], code="unknown_parameter", hint=hint)
    return ignored


def extras(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of all fields that a body and the models inside it do not have."""
    for name, value in (model.__pydantic_extra__ or {}).items():
        yield prefix + name, value
    for name in _nested(type(model)):
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from extras(value, f"{prefix}{name}.")


@cache
def _nested(model: type[BaseModel]) -> tuple[str, ...]:
    """Fields that may hold a model."""

    def may(annotation: Any) -> bool:
        if get_origin(annotation) in (Union, UnionType):
            return any(map(may, get_args(annotation)))
        return isinstance(annotation, type) and issubclass(annotation, BaseModel)

    return tuple(name for name, field in model.model_fields.items() if may(field.annotation))


class FieldRule:
    """The rule of one server. Logs each unknown name once."""

    def __init__(self, unknown: UnknownFields = "warn") -> None:
        self._unknown: UnknownFields = unknown
        self._logged: set[str] = set()

    def apply(self, body: BaseModel, route: str) -> list[str]:
        """Names of the body's fields that count for nothing. Raises RequestError."""
        found = dict(extras(body))
        if len(found) > MAX_UNMODELLED:
            raise RequestError(f"the body has more than {MAX_UNMODELLED} fields that this route does not know")
        return self.note(judge(found, self._unknown, type(body).model_fields), route) if found else []

    def judge(self, fields: Mapping[str, Any], known: Mapping[str, Any], route: str) -> list[str]:
        """The same for fields of a mapping inside a body."""
        return self.note(judge(fields, self._unknown, known), route)

    def note(self, ignored: list[str], route: str) -> list[str]:
        """Log names that have not been seen yet."""
        for name in ignored:
            if name not in self._logged and len(self._logged) < MAX_LOGGED:
                self._logged.add(name)
                log.warning("%s: field %r is unknown and ignored (told once; see the header %s)", route, name, HEADER)
        return ignored


def header_value(ignored: list[str]) -> str:
    """The response header's text: names only, and only characters that headers may hold."""
    shown = [name.encode("ascii", "replace").decode().replace(",", "?") for name in ignored[:MAX_NAMED]]
    text = ", ".join("".join(c if " " <= c < "\x7f" else "?" for c in name[:100]) for name in shown)
    return text + (f", and {len(ignored) - MAX_NAMED} more" if len(ignored) > MAX_NAMED else "")
