"""memory_server: everything of a server but the process and the socket; and transports that really stream."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse

from core.engine.engine import Engine
from core.interfaces.errors import ConfigError, UnknownArchitecture
from core.interfaces.hooks import HookPlugin, hookimpl
from core.testing.byte_codec import byte_tokenizer
from core.testing.byte_tokenizer import ByteTokenizer
from core.testing.server import MemoryServer, memory_server, plugin
from core.testing.transport import async_transport

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "ignore_eos": True, "seed": 3}
MOCKS = "core-mock-*"


def folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(MOCKS))


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take so long that a long answer is still under way when somebody looks."""
    original = Engine.step

    def step(self: Engine) -> Any:
        time.sleep(0.003)
        return original(self)

    monkeypatch.setattr(Engine, "step", step)


class TestServer:
    async def test_streams_what_it_answers(self) -> None:
        async with memory_server() as server:
            whole = (await server.client.post("/v1/chat/completions", json=CHAT)).json()
            client = server.openai()
            options: dict[str, Any] = {key: value for key, value in CHAT.items() if key != "ignore_eos"}
            stream = await client.chat.completions.create(
                model="mock", stream=True, extra_body={"ignore_eos": True}, **options
            )
            pieces = [event.choices[0].delta.content or "" async for event in stream]
            assert "".join(pieces) == whole["choices"][0]["message"]["content"]
            assert whole["usage"]["completion_tokens"] == 6
            assert (await server.client.get("/ready")).status_code == 200

    def test_without_an_event_loop(self) -> None:
        with memory_server() as server:
            whole = server.client.post("/v1/chat/completions", json=CHAT).json()
            with server.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
                lines = [line for line in reply.iter_lines() if line]
            assert lines[-1] == "data: [DONE]"
            made = server.openai().completions.create(model="mock", prompt="hi", max_tokens=4)
            assert made.usage.completion_tokens <= 4
            assert whole["model"] == server.model_name

    @pytest.mark.usefixtures("slow_steps")
    async def test_a_client_that_goes_within_a_stream_aborts(self) -> None:
        async with memory_server() as server:
            body = CHAT | {"stream": True, "max_tokens": 1500}
            async with server.client.stream("POST", "/v1/chat/completions", json=body) as reply:
                async for _ in reply.aiter_bytes():
                    assert server.engine.num_requests == 1, "the first piece is here while the rest is being made"
                    break
            assert server.engine.num_requests == 0
            assert 'finish_reason="abort"' in (await server.client.get("/metrics")).text

    async def test_settings_and_their_errors(self) -> None:
        async with memory_server(api_key="hush", max_n=2, context_length=64) as server:
            assert (await server.client.get("/v1/models")).json()["data"][0]["max_model_len"] == 64
            assert (await server.client.get("/v1/models", headers={"authorization": ""})).status_code == 401
            assert (await server.client.post("/v1/chat/completions", json=CHAT | {"n": 3})).status_code == 400
            assert (await server.openai().models.list()).data[0].id == "mock"
        with pytest.raises(ConfigError, match="max_m"):
            async with memory_server(max_m=2):
                pass

    async def test_leaves_nothing_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        before = folders()
        async with memory_server() as server:
            assert folders() - before
            await server.client.post("/v1/chat/completions", json=CHAT)
        assert folders() == before
        assert "engine" not in {thread.name for thread in threading.enumerate()}
        with pytest.raises(ConfigError), memory_server(attention_backend="auto", prefix_cache="radix", page_size=0):
            pass
        assert folders() == before
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        assert not tasks

    async def test_two_at_once(self) -> None:
        async with memory_server() as one, memory_server() as two:
            answers = [
                (await server.client.post("/v1/chat/completions", json=CHAT)).json()["choices"] for server in (one, two)
            ]
            assert answers[0] == answers[1]

    async def test_only_core_and_what_is_given_is_visible(self) -> None:
        async with memory_server() as server:
            found = (await server.client.get("/server_info")).json()["plugins"]
            assert {entry["distribution"] for entry in found} - {None} == {"core"}
        with pytest.raises(UnknownArchitecture):
            async with memory_server(distributions=[], model=str(_config("LlamaForCausalLM"))):
                pass

    async def test_hooks_of_both_processes_and_their_metrics(self) -> None:
        heard: list[str] = []

        class Listener(HookPlugin):
            @hookimpl
            def core_configure(self, process: str) -> None:
                heard.append(f"configure {process}")

            @hookimpl
            def core_engine_started(self, info: Any) -> None:
                heard.append(f"started {info.architecture}")

            @hookimpl
            def core_request_finished(self, request: Any) -> None:
                heard.append(f"finished {request.finish_reason}")

            @hookimpl
            def core_engine_stopping(self, reason: str) -> None:
                heard.append(reason)

            @hookimpl
            def core_metrics(self, registry: Any) -> None:
                from prometheus_client import Gauge

                Gauge("listener_up", "It listens.", registry=registry).set(1)

        async with memory_server(plugins=[plugin("hooks", "listener", Listener)]) as server:
            await server.client.post("/v1/chat/completions", json=CHAT)
            assert "listener_up 1.0" in (await server.client.get("/metrics")).text
            info = (await server.client.get("/server_info")).json()
            assert info["effective"]["hooks"] == "listener"
        assert heard == ["configure engine", "started MockForCausalLM", "finished length", "shutdown"]

    async def test_a_dead_engine_is_a_503(self) -> None:
        def broken() -> None:
            raise ValueError("half updated")

        async with memory_server() as server:
            server.engine._build = None  # type: ignore[assignment]
            engine = _engine_of(server)
            engine._scheduler.schedule = broken
            assert (await server.client.post("/v1/chat/completions", json=CHAT)).status_code == 503
            assert (await server.client.get("/health")).status_code == 503


def _config(architecture: str) -> Path:
    import json

    folder = Path(tempfile.mkdtemp(prefix="config-"))
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return folder


def _engine_of(server: MemoryServer) -> Any:
    """The engine behind the client, out of the thread that runs it."""
    import gc

    return next(found for found in gc.get_objects() if isinstance(found, Engine) and found.hello is server.engine.hello)


@pytest.mark.slow
async def test_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("plugin_llama")
    from core.testing.checkpoint import write_tiny_checkpoint

    folder = write_tiny_checkpoint(tmp_path, "llama")
    async with memory_server(folder, distributions=["plugin-llama"], hooks="none") as server:
        reply = (await server.client.post("/v1/chat/completions", json=CHAT | {"temperature": 0})).json()
        assert reply["usage"]["completion_tokens"] == 6


def test_the_byte_tokenizer_is_the_front_ends() -> None:
    ours, plain = byte_tokenizer(), ByteTokenizer()
    messages = [{"role": "user", "content": "grüß <|im_end|>"}, {"role": "assistant", "content": "dich"}]
    text = ours.apply_chat_template(messages, add_generation_prompt=True)
    assert ours.encode(text, add_special_tokens=False) == plain.apply_chat_template(messages)
    assert ours.encode("é", add_special_tokens=True) == [256, 0xC3, 0xA9]
    stream = ours.decode_stream()
    assert [stream.step(token) for token in "aé🙂".encode()] == ["a", "", "é", "", "", "", "🙂"]
    assert stream.step(0xC3) + stream.flush() == "\ufffd"
    assert ours.decode([104, 105, 257, 5000]) == "hi"
    assert ours.piece(258) == ("<|im_start|>", b"<|im_start|>")
    assert ours.eos_token_ids == (257, 259)


class TestTransport:
    def client(self, app: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=async_transport(app), base_url="http://memory")

    async def test_request_and_response(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            request = Request(scope, receive)
            body = await request.body()
            shown = f"{request.method} {request.url.path} {request.url.query} {request.headers['x-y']} {len(body)}"
            await PlainTextResponse(shown, 201, {"x-z": "1"})(scope, receive, send)

        async with self.client(app) as client:
            reply = await client.put("/a%20b?c=d&e=f", content=b"x" * 10, headers={"X-Y": "z"})
        assert (reply.status_code, reply.text, reply.headers["x-z"]) == (201, "PUT /a b c=d&e=f z 10", "1")

    async def test_pieces_arrive_one_by_one_and_the_app_waits_for_the_reader(self) -> None:
        sent: list[int] = []

        async def pieces() -> AsyncIterator[bytes]:
            for number in range(50):
                sent.append(number)
                yield b"%d;" % number

        app = StreamingResponse(pieces())
        async with self.client(app) as client, client.stream("GET", "/") as reply:
            parts = reply.aiter_raw()
            assert await anext(parts) == b"0;"
            await asyncio.sleep(0.05)
            assert len(sent) < 5
            assert b"".join([part async for part in parts]).endswith(b"49;")

    async def test_leaving_is_a_disconnect(self) -> None:
        seen: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            seen.append((await receive())["type"])
            await send({"type": "http.response.body", "body": b"dropped", "more_body": True})
            seen.append("went on")

        async with self.client(app) as client, client.stream("GET", "/") as reply:
            assert await anext(reply.aiter_raw()) == b"x"
        assert seen == ["http.disconnect", "went on"]

    async def test_what_an_app_raises(self) -> None:
        async def before(scope: Any, receive: Any, send: Any) -> None:
            raise ValueError("before")

        async def within(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise ValueError("within")

        async with self.client(before) as client:
            with pytest.raises(ValueError, match="before"):
                await client.get("/")
        async with self.client(within) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/")
