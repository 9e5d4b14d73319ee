"""How chat asks a template to think, in every spelling that clients have; what of a request's fields nobody reads."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from core.interfaces.errors import RequestError
from core.server.chat import _chat_request
from core.server.fields import HEADER, INERT, REFUSED
from core.server.schemas import ChatBody, CompletionBody, GenerateBody

HI = [{"role": "user", "content": "Hi"}]
OFF, ON = dict.fromkeys(("enable_thinking", "thinking"), False), dict.fromkeys(("enable_thinking", "thinking"), True)

# What the servers that clients come from take in a generation request, and that is no field of theirs here.
FOREIGN = {
    ChatBody: (
        "user", "stop_regex", "watermark", "custom_params", "task", "input_ids", "lora_path", "session_params",
        "return_routed_experts", "return_cached_tokens_details", "return_spec_tokens_details", "return_meta_info",
        "return_input_ids_in_sglext", "return_output_ids_in_sglext", "return_sampling_mask", "data_parallel_rank",
        "stream_reasoning", "include_reasoning", "kv_transfer_params", "vllm_xargs", "media_io_kwargs", "echo",
        "return_tokens_as_token_ids", "mm_processor_kwargs", "enable_thinking", "chat_template", "documents",
    ),
    GenerateBody: (
        "image_data", "video_data", "audio_data", "modalities", "mm_hashes", "mm_content_hashes", "video_config",
        "use_audio_in_video", "images_config", "max_dynamic_patch", "min_dynamic_patch", "image_max_dynamic_patch",
        "token_ids_logprob", "return_flat_raw_top_logprobs", "return_flat_raw_output_top_logprobs",
        "return_flat_raw_top_logprobs_b64", "return_entropy", "return_sampling_mask", "sampling_logprobs_mode",
        "return_routed_experts", "routed_experts_start_len", "return_indexer_topk", "return_bytes", "lora_path",
        "lora_id", "session_id", "session_params", "custom_logit_processor", "watermark", "require_reasoning",
        "kv_hints", "routing_key", "conversation_id", "bootstrap_host", "bootstrap_port", "bootstrap_room",
        "bootstrap_pair_key", "decode_tp_size", "routed_dp_rank", "disagg_prefill_dp_rank", "custom_labels",
        "no_logs", "log_metrics", "background", "multi_item_delimiter_indices", "token_indices_to_pool",
        "positional_embed_overrides", "input_embeds", "stream_interval", "spaces_between_special_tokens", "beam_width",
    ),
    CompletionBody: ("use_beam_search", "length_penalty", "prompt_embeds", "guided_decoding_backend", "detokenize"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, {}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": 0.5}, {"reasoning_effort": 0.5}),
        ({"reasoning_effort": "none"}, OFF),
        ({"thinking": True}, ON),
        ({"thinking": False}, OFF),
        ({"thinking": {"type": "enabled"}}, ON),
        ({"thinking": {"type": "disabled"}}, OFF),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "low"}, {**ON, "reasoning_effort": "low"}),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"thinking": True}}, {**OFF, "thinking": True}),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "x"}}, {"reasoning_effort": "x"}),
    ],
)
def test_thinking_is_asked_for(fields: dict[str, Any], variables: dict[str, Any]) -> None:
    body = ChatBody.model_validate({"messages": HI, **fields})
    assert _chat_request(body).template_variables == variables


def test_thinking_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        _chat_request(ChatBody.model_validate({"messages": HI, "thinking": {"type": "maybe"}}))
    assert caught.value.param == "thinking.type"


@pytest.mark.parametrize("model", FOREIGN)
def test_no_known_field_of_other_servers_is_dropped(model: Any) -> None:
    known = {*model.model_fields, *INERT, *REFUSED}
    assert [name for name in FOREIGN[model] if name not in known] == []


def test_the_prompts_ids_alone(launch) -> None:
    with launch() as server:
        for route, body in (("chat/completions", {"messages": HI}), ("completions", {"prompt": "Hi"})):
            reply = httpx.post(f"{server.url}/v1/{route}", json={**body, "return_prompt_token_ids": True})
            found = {**reply.json(), **reply.json()["choices"][0]}
            assert found["prompt_token_ids"] == server.engine.requests[-1].prompt.tolist()
            assert "token_ids" not in found


def test_fields_inside_stream_options_of_responses(launch) -> None:
    with launch() as server:
        options = {"include_obfuscation": False, "chunks": 2}
        reply = httpx.post(f"{server.url}/v1/responses", json={"input": "Hi", "stream_options": options})
        assert (reply.status_code, reply.headers[HEADER]) == (200, "stream_options.chunks")


def test_expressions_end_the_text_on_every_route(launch) -> None:
    routes: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": HI, "stop_regex": "[a-z]+, w"}),
        ("/v1/completions", {"prompt": "Hi", "stop_regex": ["[a-z]+, w"]}),
        ("/generate", {"text": "Hi", "sampling_params": {"stop_regex": "[a-z]+, w"}}),
        ("/v1/messages", {"messages": HI, "max_tokens": 50, "stop_regex": "[a-z]+, w"}),
        ("/api/generate", {"model": "tiny", "prompt": "Hi", "stream": False, "options": {"stop_regex": "[a-z]+, w"}}),
    ]
    with launch() as server:
        for route, body in routes:
            reply = httpx.post(server.url + route, json=body)
            assert reply.status_code == 200, reply.text
            assert "world" not in reply.text
            assert '"H"' in reply.text, (route, reply.text)
            assert server.engine.requests[-1].ended_by_text
        (choice,) = httpx.post(server.url + routes[0][0], json=routes[0][1]).json()["choices"]
        assert (choice["finish_reason"], choice["matched_stop"]) == ("stop", "[a-z]+, w")


@pytest.mark.parametrize(("arguments", "path"), [('{"city": 3}', "$.city"), ('{"city": "Rome"}', None)])
def test_arguments_that_do_not_fit_the_tool_are_told(launch, arguments: str, path: str | None) -> None:
    function = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    body = {"messages": HI, "tools": [{"type": "function", "function": function}]}
    with launch() as server:
        server.says(f'<tool_call>{{"name": "weather", "arguments": {arguments}}}</tool_call>')
        url = f"{server.url}/v1/chat/completions"
        (choice,) = httpx.post(url, json=body).json()["choices"]
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == arguments
        told = choice.get("tool_call_problems", [])
        assert [(problem["index"], problem["path"]) for problem in told] == ([(0, path)] if path else [])
        lines = [line[6:] for line in httpx.post(url, json={**body, "stream": True}).text.splitlines() if line]
        last = json.loads(lines[-2])["choices"][0]
        assert last["finish_reason"] == "tool_calls"
        assert last.get("tool_call_problems", []) == told
