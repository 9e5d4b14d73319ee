"""Requests of every kind and route, good and bad, drawn from a seeded generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.soak.wire import GOES_AWAY, Answer, Manner

HOSTILE_TEXTS = (
    "Hello", "What is the capital of France?", "", " ", "\x00", "a\x00b", "\ud800", "x\udfffy",  # halves of pairs
    "\u202eabc\u202c", "\u05d0\u0628" * 20, "e" + "\u0301" * 400, "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 30,
    "\U0010ffff\ufffe\ufeff", "\r\n\r\ndata: [DONE]\r\n\r\n", "<|im_start|>system\n", "<tool_call>{", "</think>",
    "{{ 7*7 }}{% raw %}", "%s%n%x", "../../etc/passwd", "\u2028\u2029", "\ufffd" * 50, "ab" * 3000,
)  # fmt: skip
SCHEMAS: tuple[Any, ...] = (
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"enum": ["x", "y", 1, None]},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    {"type": "string", "maxLength": 5},
    {"$ref": "#/$defs/missing"},
    {"$ref": "http://127.0.0.1:9/schema.json"},
    {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(300)}},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"type": "nothing"}, {"pattern": "(a+)+$", "type": "string"}, {"minimum": 5, "maximum": 1}, True, False, 7, "no",
)  # fmt: skip
REGEXES = (
    "[a-z]{1,8}",
    "(a|b)+",
    "(",
    "(a{1,1000}){1,1000}",
    "(?<=x)y",
    "\\p{L}+",
    "(x+x+)+y",
    "[^\\x00-\\x7f]{2}",
    "",
)
GRAMMARS = (
    'root ::= "yes" | "no"', "root ::= root", 'root ::= "a" root | "b"', "nothing", 'root ::= [a-z]+ "' + "x" * 5000,
    "root ::= " + "(" * 400 + '"a"' + ")" * 400, 'root ::= ("a"*)*',
)  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
BAD_BODIES = (
    b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"a":' * 3000 + b"1" + b"}" * 3000, b"[" * 50_000,
    b'{"prompt":"\\ud800","max_tokens":1}', b'{"max_tokens":1e999,"prompt":"a"}', b'{"prompt":"a","max_tokens":NaN}',
    b'{"prompt":"a","max_tokens":' + b"9" * 5000 + b"}", b'{"prompt":"a","max_tokens":1,"max_tokens":"x"}',
    b"{" + b",".join(b'"k%d":0' % i for i in range(3000)) + b"}", b'{"prompt":"' + b"x" * 300_000 + b'"}',
)  # fmt: skip
BAD_HEADERS: tuple[dict[str, str], ...] = (
    {"x-request-timeout": "soon"}, {"x-request-timeout": "0.001"}, {"x-request-id": "no id: " * 40},
    {"traceparent": "00-zz"}, {"content-type": "text/plain"}, {"accept": "nothing/at-all"},
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One request. rid: a name by which an admin may end it. ends: whether a stream's text is complete."""

    route: str
    body: bytes = b""
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    manner: Manner = Manner.WHOLE
    streams: bool = False
    rid: str | None = None

    def problem(self, answer: Answer) -> str:
        """What is wrong with the answer; "" if nothing is."""
        if self.manner in GOES_AWAY:
            return "a 500" if answer.status == 500 else ""
        if not answer.status:
            return "no answer"
        if not answer.complete:
            return f"status {answer.status}, and the body is cut"
        if answer.status == 500:
            return f"a 500: {answer.text[:200]}"
        if "Traceback" in answer.text:
            return "a traceback"
        if answer.status >= 400:
            return _error_problem(answer)
        if self.streams and not _ended(self.route, answer.text):
            return f"the stream has no end: {answer.text[-200:]!r}"
        return ""


def _error_problem(answer: Answer) -> str:
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status} in no error shape: {answer.text[:200]!r}"
    message = error if isinstance(error, str) else error.get("message")
    return "" if isinstance(message, str) and message.strip() else f"status {answer.status} says nothing"


def _ended(route: str, text: str) -> bool:
    if route.startswith("/api/"):
        last = json.loads(text.rstrip("\n").rsplit("\n", 1)[-1])
        return bool(last.get("done") or last.get("error"))
    if route == "/v1/responses":
        ends = ("response.completed", "response.incomplete", "response.failed", "error")
        return any(f"event: {name}\n" in text for name in ends)
    if route == "/v1/messages":
        return "event: message_stop" in text or "event: error" in text
    return text.rstrip().endswith("data: [DONE]")


Make = Callable[[random.Random], tuple[str, dict[str, Any]]]


def draw(rng: random.Random, keys: tuple[str, ...]) -> Case:
    """The next request. keys: of tenants; sometimes none or a wrong one is sent."""
    roll = rng.random()
    if roll < 0.08:
        return _bad(rng, keys)
    if roll < 0.14:
        path = rng.choice(
            (
                "/v1/models",
                "/health",
                "/ready",
                "/metrics",
                "/server_info",
                "/v1/loads",
                "/nowhere",
                "/openapi.json",
                "/api/tags",
                "/",
                "/v1/responses/resp_none",
                "/v1/chat/completions",
            )
        )
        return Case(path, method="GET", headers=_key(rng, keys))  # fmt: skip
    route, body = rng.choice(MAKERS)(rng)
    streams = route not in ("/v1/embeddings", "/tokenize", "/detokenize", "/v1/messages/count_tokens")
    if streams:
        body["stream"] = rng.random() < 0.5
    if rng.random() < 0.3:
        body |= rng.choice(DISTURBANCES)
    if streams and body["stream"] not in (True, False):
        body["stream"] = False
    rid = None
    if route in ("/v1/chat/completions", "/v1/completions", "/generate") and rng.random() < 0.2:
        rid = body["rid"] = f"soak-{rng.getrandbits(64):x}"
    headers = _key(rng, keys)
    if rng.random() < 0.1:
        headers["x-request-timeout"] = rng.choice(("0.05", "1", "5"))
    return Case(
        route, json.dumps(body).encode(), headers=headers, manner=_manner(rng), rid=rid,
        streams=streams and body["stream"],
    )  # fmt: skip


def _manner(rng: random.Random) -> Manner:
    weights = {Manner.WHOLE: 70, Manner.SLOW: 6, Manner.LEAVES: 12, Manner.HANGS_UP: 8, Manner.HALF: 4}
    return rng.choices(list(weights), list(weights.values()))[0]


def _key(rng: random.Random, keys: tuple[str, ...]) -> dict[str, str]:
    roll = rng.random()
    if roll < 0.02:
        return {}
    if roll < 0.04:
        return {"authorization": "Bearer wrong-key"}
    key = rng.choice(keys)
    return {"authorization": f"Bearer {key}"} if roll < 0.7 else {"x-api-key": key}


def _bad(rng: random.Random, keys: tuple[str, ...]) -> Case:
    route = rng.choice([*ROUTES, "/v1/rerank", "/v1/score", "/classify", "/encode"])
    headers = _key(rng, keys) | (rng.choice(BAD_HEADERS) if rng.random() < 0.4 else {})
    return Case(route, rng.choice(BAD_BODIES), headers=headers)


def _text(rng: random.Random) -> str:
    return (
        rng.choice(HOSTILE_TEXTS) if rng.random() < 0.4 else rng.choice(("Hello", "Count to ten.", "A poem, please."))
    )


def _sampling(rng: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {"max_tokens": rng.choice((1, 4, 8, 16, 40)), "temperature": rng.choice((0, 0.7, 1.5))}
    for name, values in (
        ("n", (1, 2)),
        ("seed", (0, 2**40)),
        ("top_k", (1, 40)),
        ("top_p", (0.1, 0.9)),
        ("stop", ("e", ["the", "\u00e9\u00e9"], "\U0001f600")),
        ("priority", (0, 5, -5)),
        ("timeout", (0.05, 2.0)),
        ("cache_salt", ("a", "b\x00")),
        ("ignore_eos", (True,)),
    ):
        if rng.random() < 0.15:
            made[name] = rng.choice(values)  # fmt: skip
    return made


def _form(rng: random.Random) -> dict[str, Any]:
    roll = rng.random()
    if roll < 0.6:
        return {}
    return rng.choice((
        {"json_schema": rng.choice(SCHEMAS)}, {"regex": rng.choice(REGEXES)}, {"ebnf": rng.choice(GRAMMARS)},
        {"guided_choice": ["Paris", "\u6771\u4eac"]}, {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": rng.choice(SCHEMAS)}}},
    ))  # fmt: skip


def _messages(rng: random.Random) -> list[dict[str, Any]]:
    made = [{"role": "user", "content": _text(rng)}]
    for _ in range(rng.randrange(3)):
        made += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": _text(rng)}]
    return made


def chat(rng: random.Random) -> tuple[str, dict[str, Any]]:
    body = {"messages": _messages(rng), **_sampling(rng), **_form(rng)}
    if rng.random() < 0.3:
        body |= {"tools": [TOOL], "tool_choice": rng.choice(("auto", "none", "required"))}
    if rng.random() < 0.2:
        body |= {"logprobs": True, "top_logprobs": rng.randrange(4)}
    return "/v1/chat/completions", body


def completion(rng: random.Random) -> tuple[str, dict[str, Any]]:
    prompt = rng.choice((_text(rng), [1, 2, 3], [_text(rng), "b"], [[5, 6], [7]], "word " * 400))
    body = {"prompt": prompt, **_sampling(rng), **_form(rng)}
    if rng.random() < 0.2:
        body |= {"logprobs": rng.randrange(4), "echo": rng.random() < 0.5}
    return "/v1/completions", body


def generate(rng: random.Random) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {"text": _text(rng), "sampling_params": {"max_new_tokens": rng.choice((1, 8, 30))}}
    if rng.random() < 0.2:
        body |= {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2}
    return "/generate", body


def responses(rng: random.Random) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {"input": _text(rng), "max_output_tokens": rng.choice((16, 24))}
    if rng.random() < 0.3:
        body["text"] = {"format": {"type": "json_schema", "name": "s", "schema": rng.choice(SCHEMAS)}}
    if rng.random() < 0.3:
        body["previous_response_id"] = "resp_none"
    return "/v1/responses", body


def messages(rng: random.Random) -> tuple[str, dict[str, Any]]:
    body = {"messages": _messages(rng), "max_tokens": rng.choice((1, 12, 30)), "model": "soak"}
    if rng.random() < 0.3:
        body["tools"] = [{"name": "f", "input_schema": rng.choice(SCHEMAS[:4])}]
    return "/v1/messages", body


def count_tokens(rng: random.Random) -> tuple[str, dict[str, Any]]:
    return "/v1/messages/count_tokens", {"messages": _messages(rng), "model": "soak"}


def ollama_chat(rng: random.Random) -> tuple[str, dict[str, Any]]:
    options = {"num_predict": rng.choice((1, 10, 30)), "temperature": 0.5}
    return "/api/chat", {"model": "soak", "messages": _messages(rng), "options": options}


def ollama_generate(rng: random.Random) -> tuple[str, dict[str, Any]]:
    return "/api/generate", {"model": "soak", "prompt": _text(rng), "options": {"num_predict": 8}}


def embeddings(rng: random.Random) -> tuple[str, dict[str, Any]]:
    return "/v1/embeddings", {"input": rng.choice((_text(rng), [_text(rng), "b"], [1, 2, 3]))}


def tokenize(rng: random.Random) -> tuple[str, dict[str, Any]]:
    return "/tokenize", {"prompt": _text(rng)} if rng.random() < 0.5 else {"messages": _messages(rng)}


def detokenize(rng: random.Random) -> tuple[str, dict[str, Any]]:
    return "/detokenize", {"tokens": [rng.randrange(-1, 5000) for _ in range(rng.randrange(20))]}


MAKERS: tuple[Make, ...] = (
    chat, chat, chat, completion, completion, generate, responses, messages, count_tokens, ollama_chat,
    ollama_generate, embeddings, tokenize, detokenize,
)  # fmt: skip
ROUTES = tuple(dict.fromkeys(make(random.Random(0))[0] for make in MAKERS))
DISTURBANCES: tuple[dict[str, Any], ...] = (
    {"temperature": "hot"}, {"max_tokens": -1}, {"n": 10**9}, {"model": "another"}, {"seed": 2**70}, {"stop": [""]},
    {"stream": "yes"}, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {
        "url": "http://127.0.0.1:9/x.png"}}]}]}, {"logit_bias": {"x": 1}}, {"unknown_field": {"a": [1]}},
    {"chat_template_kwargs": {"messages": []}}, {"tools": [{"type": "function"}]}, {"max_tokens": 10**6},
    {"response_format": {"type": "yaml"}}, {"truncate_prompt_tokens": 4}, {"priority": 10**20},
)  # fmt: skip
