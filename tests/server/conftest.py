"""A real uvicorn server in a thread, over the fake engine."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "frontend")]

from fake_engine import FakeEngine, says  # noqa: E402
from made_tokenizers import byte_level_folder  # noqa: E402
from running import Running  # noqa: E402
from tiny_parsers import CallParser, ThinkParser  # noqa: E402

from core.config.sections import ServerSettings  # noqa: E402
from core.frontend.chat import ChatRenderer  # noqa: E402
from core.frontend.tokenizer import Tokenizer  # noqa: E402
from core.metrics.prometheus import ServerMetrics  # noqa: E402
from core.server.app import build_app  # noqa: E402
from core.server.context import ModelService, Phase, ServerContext  # noqa: E402
from core.server.main import _http_protocol  # noqa: E402

Launch = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(byte_level_folder(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="session")
def launch(tokenizer: Tokenizer) -> Launch:
    @contextmanager
    def run(
        *, parsers: bool = True, defaults: dict[str, Any] | None = None, context_length: int = 256, **settings: Any
    ) -> Iterator[Running]:
        engine = FakeEngine(says(tokenizer, "Hello, world 🙂!"), context_length=context_length)
        ctx = ServerContext(ServerSettings(**settings), ServerMetrics("tiny"), engine=engine, phase=Phase.READY)
        renderer = ChatRenderer(tokenizer, CallParser() if parsers else None, ThinkParser() if parsers else None)
        ctx.service = ModelService(
            "tiny", "/models/tiny", engine, tokenizer, renderer, engine.hello(), defaults=defaults or {}
        )
        server = uvicorn.Server(
            uvicorn.Config(build_app(ctx), http=_http_protocol(), log_level="warning", lifespan="off")
        )
        sock = socket.create_server(("127.0.0.1", 0))
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve([sock])), daemon=True)
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{sock.getsockname()[1]}", ctx, engine, tokenizer, loop)
        finally:
            server.should_exit = server.force_exit = True
            thread.join(20)
            loop.close()
            sock.close()

    return run


@pytest.fixture
def server(launch: Launch) -> Iterator[Running]:
    with launch() as running:
        yield running


@pytest.fixture(scope="module")
def refusing_server(launch: Launch) -> Iterator[Running]:
    """With a context for tools and several turns. For requests that leave nothing behind, so they share it."""
    with launch(context_length=2048) as running:
        yield running


@pytest.fixture
def roomy_server(refusing_server: Running) -> Running:
    """The same, with its engine as new."""
    engine = refusing_server.engine
    assert engine.running == 0
    vars(engine).update(vars(FakeEngine(engine.script, context_length=engine.context_length)))
    refusing_server.says("Hello, world 🙂!")
    return refusing_server
