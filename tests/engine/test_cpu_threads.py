from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from core.config.sections import EngineSettings, Settings
from core.engine.make_runner import make_hardware
from core.hardware.cpu import CpuBackend
from core.hardware.host_memory import usable_cores
from core.registry import Choice, PluginRecord
from core.testing.mock_hardware import MockHardware


def made(target: Any, name: str, threads_asked: int | None = 3, ranks: int = 1, **plugin: Any) -> Any:
    record = PluginRecord("hardware", name, "test", "1", "test:Device")
    resolution = SimpleNamespace(
        hardware=Choice("hardware", name, record, target, "test"),
        plugin_settings={name: plugin} if plugin else {},
        tensor_parallel_size=ranks,
    )
    return make_hardware(Settings(engine=EngineSettings(cpu_threads=threads_asked)), resolution)  # type: ignore[arg-type]


def test_a_device_of_host_threads_gets_their_number_and_its_own_setting_wins() -> None:
    assert made(CpuBackend, "cpu").ctx.settings["threads"] == 3
    assert made(CpuBackend, "cpu", threads=2).ctx.settings["threads"] == 2


def test_another_device_says_that_it_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="core.engine"):
        made(MockHardware, "mock")
    assert "cpu_threads=3 has no effect" in caplog.text


def test_ranks_share_the_cores() -> None:
    cores = usable_cores()
    assert made(CpuBackend, "cpu", None, 2).ctx.settings["threads"] == max(1, cores // 2)
    assert made(CpuBackend, "cpu", None, 64).ctx.settings["threads"] == max(1, cores // 64)
    assert made(CpuBackend, "cpu", 3, 2).ctx.settings["threads"] == 3
    assert made(CpuBackend, "cpu", None, 2, threads=5).ctx.settings["threads"] == 5
