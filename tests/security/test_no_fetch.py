"""Nothing in a request makes core open a connection or a file: not a picture, not a schema, not a template."""

from __future__ import annotations

import builtins
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.testing.server import MemoryServer

PLACES = (
    "http://127.0.0.1:{port}/x.png", "http://localhost:{port}/", "http://[::ffff:127.0.0.1]:{port}/", "http://0:{port}/",
    "http://2130706433:{port}/", "http://169.254.169.254/latest/meta-data/", "file://{file}", "file:{file}", "{file}",
    "ftp://127.0.0.1:{port}/x", "gopher://127.0.0.1:{port}/x", "data:image/png;base64,AAAA", "\\\\127.0.0.1\\x",
)  # fmt: skip
SECRET = "what the file says 5e1c"


class Watched:
    """A listener that nobody should call, and a file that nobody should open."""

    def __init__(self, folder: Path) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.settimeout(0.05)
        self.port = self.socket.getsockname()[1]
        self.file = folder / "secret.json"
        self.file.write_text(json.dumps(SECRET))
        self.events: list[str] = []
        self.on = False

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Python's own record of what is opened and connected."""
        if not self.on:
            return
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system"):
            self.events.append(f"{event}{args[-1]!r}")
        if event == "open" and str(args[0]) == str(self.file):
            self.events.append(f"open {args[0]}")

    def place(self, text: str) -> str:
        return text.format(port=self.port, file=self.file)

    def check(self) -> None:
        assert not self.events
        with pytest.raises(TimeoutError):
            self.socket.accept()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    made = Watched(tmp_path_factory.mktemp("watched"))
    sys.addaudithook(made.audit)  # for good, hence the switch
    yield made
    made.on = False
    made.socket.close()


def bodies(place: str) -> dict[str, list[dict[str, Any]]]:
    """Requests in which `place` stands where somebody might fetch it, by route."""
    parts = [
        {"type": "image_url", "image_url": {"url": place}}, {"type": "image_url", "image_url": place},
        {"type": "input_image", "image_url": place}, {"type": "video_url", "video_url": {"url": place}},
        {"type": "input_audio", "input_audio": {"data": place, "format": "wav"}},
        {"type": "file", "file": {"file_id": place}}, {"type": "image", "source": {"type": "url", "url": place}},
        {"type": "document", "source": {"type": "url", "url": place}}, {"type": "input_file", "file_url": place},
    ]  # fmt: skip
    chats = [{"messages": [{"role": "user", "content": [part]}], "max_tokens": 1} for part in parts]
    hi = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    chats += [hi | {"json_schema": {"$ref": place}}, hi | {"tools": [{"type": "mcp", "server_url": place}]},
              hi | {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": place}}}},  # noqa: E501
              hi | {"chat_template": place}]  # fmt: skip
    return {
        "/v1/chat/completions": chats,
        "/v1/responses": [
            {"input": [{"role": "user", "content": [part]}], "max_output_tokens": 1} for part in parts
        ] + [{"input": "a", "tools": [{"type": "mcp", "server_label": "a", "server_url": place}]},
             {"input": "a", "tools": [{"type": "web_search"}]}],
        "/v1/messages": [chat | {"model": "mock"} for chat in chats[: len(parts)]],
        "/api/chat": [{"model": "mock", "messages": [{"role": "user", "content": "a", "images": [place]}]}],
        "/api/generate": [{"model": "mock", "prompt": "a", "images": [place]}],
        "/generate": [{"text": "a", "image_data": place}, {"text": "a", "audio_data": [place]},
                      {"text": "a", "lora_path": place}],
    }  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_fetched(server: MemoryServer, watched: Watched, place: str) -> None:
    watched.on, watched.events = True, []
    try:
        for route, asked in bodies(watched.place(place)).items():
            for body in asked:
                reply = server.client.post(route, json=body)
                assert reply.status_code == 400, (route, body, reply.status_code, reply.text[:200])
                assert SECRET not in reply.text
    finally:
        watched.on = False
    watched.check()


def test_the_watch_sees(watched: Watched, tmp_path: Path) -> None:
    """The tests above can fail."""
    watched.on, watched.events = True, []
    try:
        with builtins.open(watched.file) as file:
            file.read()
        with socket.socket() as other:
            other.connect(("127.0.0.1", watched.port))
    finally:
        watched.on = False
    assert len(watched.events) == 2
    watched.socket.accept()[0].close()
    watched.events = []


@pytest.mark.parametrize("path", [
    "/page/../../../etc/passwd", "/page/..%2f..%2fetc%2fpasswd", "/page/%2e%2e/app.py", "/page//etc/passwd", "/page/app.py",  # noqa: E501
    "/page/index.html%00.js", "/v1/models/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
])  # fmt: skip
def test_paths_lead_nowhere(server: MemoryServer, path: str) -> None:
    reply = server.client.get(path)
    assert reply.status_code in (400, 404), reply.text[:200]
    assert "root:" not in reply.text
    assert os.sep + "core" + os.sep + "server" not in reply.text
