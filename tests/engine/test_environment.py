"""A device's environment variables: in child processes, in this process, and beside those that the operator set."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.config.sections import EngineSettings, Settings
from core.engine.child import EngineProcess
from core.engine.environment import apply_environment, device_environment
from core.engine.process_client import ProcessClient
from core.interfaces.errors import ConfigError, PluginError
from core.testing.mock_engine import catalog_with
from core.testing.mock_vendor import CORE_DUMP_VARIABLE, NAME, QUEUE_VARIABLE, MockVendorHardware, vendor_records

FACTORY = "environment_probe:build"


def settings(device: str = NAME, **engine: Any) -> Settings:
    return Settings(engine=EngineSettings(device=device, **engine))


async def start(process: EngineProcess | None = None, **options: Any) -> Mapping[str, str]:
    """What a child saw."""
    client = ProcessClient(settings(), factory=FACTORY, process=process, **options)
    try:
        return (await client.start()).effective
    finally:
        await client.stop(drain=False)


async def test_a_child_has_them_before_it_imports_its_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(QUEUE_VARIABLE, raising=False)
    environment = device_environment(settings(), catalog_with(vendor_records()))
    assert environment == {QUEUE_VARIABLE: "2"}
    seen = await start(environment=environment)
    assert seen[QUEUE_VARIABLE] == "2"
    assert seen["torch"] == "False"
    assert QUEUE_VARIABLE not in os.environ, "nothing is set in the parent"


def test_no_core_dumps_unless_the_operator_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CORE_DUMP_VARIABLE not in device_environment(settings(), catalog_with(vendor_records()))


async def test_core_dumps_are_the_devices_own_variables_and_the_folder_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(CORE_DUMP_VARIABLE, raising=False)
    folder = tmp_path / "deep" / "dumps"
    environment = device_environment(settings(device_core_dumps=str(folder)), catalog_with(vendor_records()))
    assert environment == {QUEUE_VARIABLE: "2", CORE_DUMP_VARIABLE: f"{folder}/%p.core"}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (await start(environment=environment))[CORE_DUMP_VARIABLE] == f"{folder}/%p.core"


def test_a_device_without_core_dumps_or_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'cpu' writes no core dumps") as caught:
        device_environment(settings("cpu", device_core_dumps=str(tmp_path)), catalog_with())
    assert (caught.value.field, caught.value.hint) == ("engine.device_core_dumps", "leave out --device-core-dumps")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make"):
        device_environment(settings(device_core_dumps=str(tmp_path / "file" / "x")), catalog_with(vendor_records()))


async def test_a_child_that_was_spawned_early_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(QUEUE_VARIABLE, raising=False)
    process = EngineProcess.spawn(FACTORY)
    process.prepare({QUEUE_VARIABLE: "7"})
    assert (await start(process))[QUEUE_VARIABLE] == "7"


async def test_what_the_operator_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(QUEUE_VARIABLE, "31")
    assert (await start(environment={QUEUE_VARIABLE: "2"}))[QUEUE_VARIABLE] == "31"
    assert apply_environment({QUEUE_VARIABLE: "2"}) == []
    assert os.environ[QUEUE_VARIABLE] == "31"


async def test_a_restarted_child_has_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio
    import signal

    monkeypatch.delenv(QUEUE_VARIABLE, raising=False)
    client = ProcessClient(settings(), factory=FACTORY, environment={QUEUE_VARIABLE: "2"})
    try:
        first = (await client.start()).effective["pid"]
        os.kill(int(first), signal.SIGKILL)
        async with asyncio.timeout(20):
            while not (client.num_restarts and client.ready):
                await asyncio.sleep(0.01)
        assert client.hello.effective["pid"] != first
        assert client.hello.effective[QUEUE_VARIABLE] == "2"
    finally:
        await client.stop(drain=False)


def test_in_this_process_they_come_before_torch(tmp_path: Path) -> None:
    """The way LLM goes: device first, then everything that imports torch."""
    script = textwrap.dedent(f"""
        import logging, os, sys
        logging.basicConfig(level="WARNING", stream=sys.stdout)
        import core.llm
        from core.engine.environment import apply_environment
        assert "torch" not in sys.modules
        assert apply_environment({{"{QUEUE_VARIABLE}": "2"}}) == []
        assert os.environ["{QUEUE_VARIABLE}"] == "2"
        import torch
        assert apply_environment({{"{QUEUE_VARIABLE}": "2"}}) == [], "it was in time"
        assert apply_environment({{"MOCK_VENDOR_LATE": "x"}}, "chip") == ["MOCK_VENDOR_LATE"]
    """)
    environment = {name: value for name, value in os.environ.items() if name != QUEUE_VARIABLE}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MOCK_VENDOR_LATE=x" in done.stdout
    assert "'chip'" in done.stdout
    assert QUEUE_VARIABLE not in done.stdout


def test_late_variables_are_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MOCK_VENDOR_A", "")  # so that it is restored
    monkeypatch.delenv("MOCK_VENDOR_A")
    monkeypatch.setitem(sys.modules, "torch", sys)
    with caplog.at_level(logging.WARNING, "core.engine"):
        assert apply_environment({"MOCK_VENDOR_A": "1"}, "chip") == ["MOCK_VENDOR_A"]
    assert "MOCK_VENDOR_A=1" in caplog.text
    assert os.environ["MOCK_VENDOR_A"] == "1", "those who read it later see it"
    monkeypatch.delenv("MOCK_VENDOR_A")


@pytest.mark.parametrize("wrong", [{"A": 1}, {"": "x"}, {"A=B": "x"}, None, RuntimeError("no")])
def test_variables_that_are_no_text_name_the_device(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    def environment(self: MockVendorHardware) -> Any:
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    monkeypatch.setattr(MockVendorHardware, "environment", environment)
    with pytest.raises(PluginError, match="MockVendorHardware"):
        device_environment(settings(), catalog_with(vendor_records()))


def test_a_device_that_cannot_be_chosen_is_left_to_resolve() -> None:
    assert device_environment(settings("no_such_device"), catalog_with()) == {}


def test_cpu_threads_reach_the_device_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.hardware.cpu import CpuBackend

    monkeypatch.setattr(CpuBackend, "environment", lambda self: {"T": str(self.ctx.settings.threads)})
    assert device_environment(settings("cpu", cpu_threads=3), catalog_with()) == {"T": "3"}
