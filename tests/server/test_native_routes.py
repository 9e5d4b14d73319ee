"""/generate, /tokenize, /detokenize, health, metrics, information."""

from __future__ import annotations

import itertools
import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from running import Running

from core.server.context import Phase

TEXT = "Hello, world 🙂!"


@pytest.fixture(scope="module")
def shared(launch):
    with launch(api_key=None) as running:
        yield running


def post(server: Running, route: str, body: dict) -> dict:
    reply = httpx.post(server.url + route, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_generate(shared: Running) -> None:
    made = post(shared, "/generate", {"text": "Once", "rid": "mine", "sampling_params": {"max_new_tokens": 40}})
    assert made["text"] == TEXT
    meta = made["meta_info"]
    assert meta["id"] == "mine"
    assert meta["finish_reason"] == {"type": "stop", "matched": 2}
    assert meta["prompt_tokens"] == len(shared.tokenizer.encode("Once"))
    assert meta["completion_tokens"] == len(made["output_ids"])
    assert made["output_ids"][-1] == 2
    short = post(shared, "/generate", {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 3}})
    assert short["meta_info"]["finish_reason"] == {"type": "length", "length": 3}
    stopped = post(shared, "/generate", {"text": "x", "sampling_params": {"stop": "wor", "no_stop_trim": True}})
    assert stopped["text"] == "Hello, wor"
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": "wor"}


def test_generate_defaults_to_128_tokens(shared: Running) -> None:
    post(shared, "/generate", {"text": "x"})
    assert shared.engine.requests[-1].sampling.max_tokens == 128


def test_generate_batches(shared: Running) -> None:
    assert [r["text"] for r in post(shared, "/generate", {"text": ["a", "b"]})] == [TEXT, TEXT]
    made = post(shared, "/generate", {"input_ids": [[5], [6]], "sampling_params": [{"seed": 1}, {"sampling_seed": 2}]})
    assert [r["text"] for r in made] == [TEXT, TEXT]
    assert sorted(request.seed for request in shared.engine.requests[-2:]) == [1, 2]
    assert len(post(shared, "/generate", {"text": "a", "sampling_params": {"n": 3}})) == 3


def test_generate_streams_cumulative_text(shared: Running) -> None:
    body = {"text": "x", "stream": True, "return_logprob": True, "top_logprobs_num": 1, "return_text_in_logprobs": True}
    with httpx.stream("POST", f"{shared.url}/generate", json=body) as reply:
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    texts = [event["text"] for event in events]
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
    assert texts[-1] == TEXT
    last = events[-1]["meta_info"]
    assert [entry[1] for entry in last["output_token_logprobs"]] == events[-1]["output_ids"]
    assert last["output_token_logprobs"][0] == [-0.25, events[-1]["output_ids"][0], "H"]
    assert len(last["output_top_logprobs"][0]) == 1
    with httpx.stream("POST", f"{shared.url}/generate", json={"text": ["x", "y"], "stream": True}) as reply:
        seen = {json.loads(line[6:])["index"] for line in reply.iter_lines() if line and "[DONE]" not in line}
    assert seen == {0, 1}


def test_tokenize(shared: Running) -> None:
    ids = shared.tokenizer.encode("Hello 🙂")
    made = post(shared, "/tokenize", {"prompt": "Hello 🙂", "return_token_strs": True})
    assert (made["tokens"], made["count"], made["max_model_len"]) == (ids, len(ids), 256)
    assert len(made["token_strs"]) == len(ids)
    assert post(shared, "/v1/tokenize", {"prompt": ["Hello 🙂", "a"]})["tokens"][0] == ids
    chat = post(shared, "/tokenize", {"messages": [{"role": "user", "content": "Hi"}]})
    assert chat["tokens"] == shared.tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert post(shared, "/detokenize", {"tokens": ids})["text"] == "Hello 🙂"
    assert post(shared, "/detokenize", {"tokens": [ids, ids]})["text"] == ["Hello 🙂"] * 2
    assert post(shared, "/detokenize", {"tokens": []})["text"] == ""
    assert post(shared, "/detokenize", {"tokens": [1], "skip_special_tokens": False})["text"] == "<|im_start|>"
    assert httpx.post(f"{shared.url}/tokenize", json={}).status_code == 400


def test_health_and_readiness_are_different(launch) -> None:
    with launch() as server:

        def status(path: str) -> int:
            return httpx.get(server.url + path).status_code

        assert (status("/health"), status("/ready")) == (200, 200)
        server.ctx.phase = Phase.STARTING
        assert (status("/health"), status("/ready"), status("/v1/models")) == (200, 503, 503)
        server.ctx.phase = Phase.DRAINING
        assert (status("/health"), status("/ready"), status("/v1/models")) == (200, 503, 503)
        server.ctx.phase = Phase.READY
        server.engine.ready = False
        assert (status("/health"), status("/ready")) == (200, 503)
        server.engine.alive = False
        assert (status("/health"), status("/ready")) == (503, 503)


def test_metrics(launch) -> None:
    with launch() as server:
        body = {"text": "Once upon a time", "sampling_params": {"max_new_tokens": 4}}
        for _ in range(2):
            httpx.post(f"{server.url}/generate", json=body)
        httpx.get(f"{server.url}/nothing/{'x' * 50}")
        page = httpx.get(f"{server.url}/metrics")
        values = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(page.text)
            for sample in family.samples
        }
    assert values["core_http_requests_total", "POST", "/generate", "200"] == 2
    assert values["core_http_requests_total", "GET", "other", "404"] == 1
    assert values["core_engine_ready", "tiny"] == 1
    assert values["core_running_requests", "tiny"] == 0


def test_information(launch) -> None:
    with launch(api_key="secret") as server:
        header = {"Authorization": "Bearer secret"}
        info = httpx.get(f"{server.url}/server_info", headers=header)
        assert "secret" not in info.text
        assert info.json()["engine"]["context_length"] == 256
        model = httpx.get(f"{server.url}/model_info", headers=header).json()
        assert (model["served_model_name"], model["model_path"]) == ("tiny", "/models/tiny")
        assert httpx.post(f"{server.url}/flush_cache", headers=header).json() == {"success": True}
        assert server.engine.flushed == 1
        described = httpx.get(f"{server.url}/openapi.json", headers=header).json()["paths"]
        (content,) = described["/v1/chat/completions"]["post"]["requestBody"]["content"].values()
        assert {"messages", "temperature", "stream_options"} <= set(content["schema"]["properties"])
        assert "$ref" not in str(content)


def test_engine_reports_an_error_for_one_request(launch) -> None:
    with launch() as server:
        server.engine.error_after = 2
        reply = httpx.post(f"{server.url}/generate", json={"text": "x"})
        assert (reply.status_code, reply.json()["error"]["message"]) == (500, "the logits are not finite")
        server.engine.error_after = None
        assert httpx.post(f"{server.url}/generate", json={"text": "x"}).status_code == 200


def test_cors(launch) -> None:
    with launch(cors_allow_origins=("http://a.test",), api_key="k") as server:
        ask = {"Origin": "http://a.test", "Access-Control-Request-Method": "POST"}
        reply = httpx.options(f"{server.url}/v1/chat/completions", headers=ask)
        assert reply.headers["access-control-allow-origin"] == "http://a.test"
        other = httpx.options(f"{server.url}/v1/chat/completions", headers={**ask, "Origin": "http://b.test"})
        assert "access-control-allow-origin" not in other.headers


def test_page_is_served_with_a_strict_policy(launch) -> None:
    with launch(api_key="k") as server:
        page = httpx.get(f"{server.url}/")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for name in ("chat.js", "styles.css", "api.js"):
            assert f"page/{name}" in page.text or name == "api.js"
            assert httpx.get(f"{server.url}/page/{name}").status_code == 200
        assert httpx.get(f"{server.url}/page/..%2Fapp.py").status_code == 404
        assert "http" not in page.text.replace("http-equiv", "")  # nothing from elsewhere
    with launch(chat_page=False) as server:
        assert httpx.get(f"{server.url}/").status_code == 404
