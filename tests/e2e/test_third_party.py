"""A distribution that only this test knows, in a real server: its hook listens in both processes, its route answers,
its command runs, its parser is seen by both processes; and an engine that sees another version of it does not start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from core.config.loading import load_settings
from core.engine.process_client import ProcessClient
from core.interfaces.errors import PluginMismatch
from core.registry import Catalog
from core.registry.resolve import resolve
from tests.e2e.process import ServerProcess, wait_until

CODE = '''
import os
from pathlib import Path

import typer
from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from prometheus_client import Gauge
from pydantic import BaseModel

from core.interfaces.hooks import HookPlugin, hookimpl
from core.interfaces.params import SamplingParams
from core.interfaces.parsers import ParsedDelta, ParserStream, ToolCallDelta, ToolParser
from core.interfaces.routes import RoutePlugin


class Options(BaseModel):
    file: str


class Listener(HookPlugin):
    def write(self, *words):
        with Path(self.ctx.settings.file).open("a") as file:
            print(os.getpid(), *words, file=file)

    @hookimpl
    def core_configure(self, settings, process):
        self.write("configure", process, settings["model"]["served_model_name"], settings["server"].get("api_key"))

    @hookimpl
    def core_weights_loaded(self, report):
        self.write("weights", report.num_tensors > 0 and report.num_bytes > 0)

    @hookimpl
    def core_engine_started(self, info):
        self.write("started", info.architecture, info.effective["tool_call_parser"])

    @hookimpl
    def core_engine_stopping(self, reason):
        self.write("stopping", reason)

    @hookimpl
    def core_request_admitted(self, request):
        self.write("admitted", request.id)

    @hookimpl
    def core_request_finished(self, request):
        self.write("finished", request.id, request.finish_reason, request.num_output_tokens)

    @hookimpl
    def core_steps_done(self, steps):
        self.write("steps", len(steps))

    @hookimpl
    def core_metrics(self, registry):
        Gauge("thirdparty_pid", "Of the server.", registry=registry).set(os.getpid())


class Routes(RoutePlugin):
    def router(self, server):
        router = APIRouter()

        @router.get("/thirdparty/say")
        async def say(text: str):
            pieces = [piece async for piece in server.generate(text, SamplingParams(max_tokens=4, temperature=0.0))]
            return {"model": server.model_name, "tokens": pieces[-1].num_output_tokens}

        @router.get("/thirdparty/stream")
        async def stream():
            async def texts():
                async for piece in server.generate("go", SamplingParams(max_tokens=1900, ignore_eos=True)):
                    yield piece.text or "."

            return StreamingResponse(texts())

        return router


class Stream(ParserStream):
    def __init__(self):
        self.begun = False

    def feed(self, delta):
        name, self.begun = None if self.begun else "say", True
        return ParsedDelta(tool_calls=[ToolCallDelta(0, name, delta)])

    def finish(self):
        return ParsedDelta()


class Parser(ToolParser):
    """All text is one call."""

    def stream(self, tools):
        return Stream()


app = typer.Typer()


@app.command()
def hello(name: str):
    print("hello", name)


@app.command()
def other():
    pass
'''
PLUGINS = {
    "hooks": ("listener", "Listener"),
    "routes": ("say", "Routes"),
    "tool_parsers": ("wire", "Parser"),
    "commands": ("greet", "app"),
}
FLAGS = (
    "--served-model-name", "tiny", "--cpu-threads", "1", "--page-size", "4", "--api-key", "hush",
    "--hooks", "listener", "--routes", "say", "--tool-call-parser", "wire",
)  # fmt: skip
KEY = {"authorization": "Bearer hush"}


def metadata(site: Path, version: str) -> None:
    info = site / "thirdparty-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: thirdparty\nVersion: {version}\n")
    lines = [f"[core.{kind}]\n{name} = thirdparty:{target}\n" for kind, (name, target) in PLUGINS.items()]
    (info / "entry_points.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The distribution, on the path of processes that are started."""
    folder = tmp_path_factory.mktemp("site")
    package = folder / "thirdparty"
    package.mkdir()
    (package / "__init__.py").write_text(CODE)
    entries = [
        f'[[plugin]]\nkind = "{kind}"\nname = "{name}"\napi = [1, 1]\n'
        + ('config = "thirdparty:Options"\n' if kind == "hooks" else "")
        for kind, (name, _) in PLUGINS.items()
    ]
    (package / "core_plugin.toml").write_text("schema = 1\n" + "".join(entries))
    metadata(folder, "1.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")])))
        yield folder


@pytest.mark.slow
def test_in_a_real_server(site: Path, checkpoint: Path, tmp_path: Path) -> None:
    heard = tmp_path / "heard"

    def lines(pid: int) -> list[str]:
        return [line.split(" ", 1)[1] for line in heard.read_text().splitlines() if line.startswith(f"{pid} ")]

    with ServerProcess(checkpoint, tmp_path / "log", *FLAGS, "--set", f"listener.file={heard}") as server:
        engine_pid = server.engine().pid
        assert lines(server.process.pid) == ["configure server tiny None"]
        assert lines(engine_pid) == [
            "configure engine tiny None", "weights True", "started LlamaForCausalLM wire"
        ]  # fmt: skip
        with httpx.Client(base_url=server.url, headers=KEY, timeout=30) as client:
            assert client.get("/thirdparty/say?text=hi").json() == {"model": "tiny", "tokens": 4}
            assert client.get("/thirdparty/say?text=hi", headers={"authorization": ""}).status_code == 401
            assert client.get("/thirdparty/say").status_code == 400
            assert f"thirdparty_pid {float(server.process.pid)}" in client.get("/metrics").text
            info = client.get("/server_info").json()
            for effective in (info["effective"], info["engine"]["effective"]):
                assert effective["tool_call_parser"] == "wire", "resolved in the server and in the engine"
                assert (effective["hooks"], effective["routes"]) == ("listener", "say")
            mine = {entry["kind"] for entry in info["plugins"] if entry["distribution"] == "thirdparty"}
            assert mine == {"hooks", "routes", "tool_parsers"}
            tool = {"type": "function", "function": {"name": "say", "parameters": {"type": "object"}}}
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "temperature": 0, "tools": [tool]}
            message = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
            assert message["tool_calls"][0]["function"]["name"] == "say"
            with client.stream("GET", "/thirdparty/stream") as reply:
                next(reply.iter_raw())
        wait_until(lambda: any(line.startswith("finished 3 abort ") for line in lines(engine_pid)), what="an abort")
        wait_until(lambda: any(line.startswith("steps ") for line in lines(engine_pid)), what="steps")
    ended = lines(engine_pid)
    assert ended[-1] == "stopping shutdown"
    assert [line.split()[1] for line in ended if line.startswith("admitted ")] == ["1", "2", "3"]
    finished = [line for line in ended if line.startswith("finished ")]
    assert finished[:2] == ["finished 1 length 4", "finished 2 length 3"]
    assert finished[2].startswith("finished 3 abort ")
    assert not psutil.pid_exists(engine_pid)


@pytest.mark.slow
def test_a_broken_named_one_stops_the_start(site: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A mistake in the name of an argument."""
    source = site / "thirdparty" / "__init__.py"
    source.write_text(CODE.replace("def core_steps_done(self, steps)", "def core_steps_done(self, stepps)"))
    try:
        server = ServerProcess(checkpoint, tmp_path / "log", *FLAGS, "--set", f"listener.file={tmp_path / 'heard'}")
        try:
            assert server.wait_exit(60) == 2
        finally:
            server.stop()
        assert "hooks plugin 'listener' (distribution thirdparty 1.0) cannot be used" in server.text()
        assert "stepps" in server.text()
        assert not server.text().count("Traceback")
    finally:
        source.write_text(CODE)


def test_a_command(site: Path) -> None:
    command = [sys.executable, "-m", "core.cli.main"]
    done = subprocess.run([*command, "greet", "hello", "you"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "hello you\n"), done.stderr


@pytest.mark.slow
async def test_an_engine_that_sees_another_version_refuses(
    site: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(site))
    flags = {
        "model": str(checkpoint), "cpu_threads": 1, "max_total_tokens": 256, "tool_call_parser": "wire",
        "hooks": "listener", "plugins": {"listener": {"file": str(tmp_path / "heard")}},
    }  # fmt: skip
    settings = load_settings(flags).settings
    lock = msgspec.msgpack.encode(resolve(settings, Catalog.scan()).lock())
    metadata(site, "1.1")
    try:
        client = ProcessClient(settings, lock)
        with pytest.raises(PluginMismatch) as caught:
            await client.start()
        await client.stop()
    finally:
        metadata(site, "1.0")
    assert "hooks thirdparty:listener 1.0: this process has version 1.1" in caught.value.message
    assert "tool_parsers thirdparty:wire 1.0" in caught.value.message
    assert not (tmp_path / "heard").exists(), "it stopped before it built anything"
    client = ProcessClient(settings, lock)
    hello = await client.start()
    await client.stop()
    assert hello.effective["tool_call_parser"] == "wire"
    assert "stopping shutdown" in (tmp_path / "heard").read_text()
