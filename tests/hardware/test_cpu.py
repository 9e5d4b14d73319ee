from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from core.hardware.cpu import CpuBackend
from core.interfaces.context import PluginContext
from core.interfaces.errors import CapacityError, ConfigError
from core.interfaces.hardware import MemoryInfo

GIB = 1 << 30


def backend(monkeypatch: pytest.MonkeyPatch, free: int, **settings: object) -> CpuBackend:
    made = CpuBackend(PluginContext(settings=settings))
    monkeypatch.setattr(made, "memory", lambda: MemoryInfo(64 * GIB, free))
    return made


def test_probe_is_available_and_loads_no_torch() -> None:
    code = (
        "import sys; from core.hardware.cpu import CpuBackend; "
        "assert CpuBackend.probe().available; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_default_budget_is_modest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend(monkeypatch, 50 * GIB).kv_budget_bytes(0.85, None) == 4 * GIB
    assert backend(monkeypatch, 2 * GIB).kv_budget_bytes(0.5, None) == GIB // 2


def test_a_request_is_taken_exactly_or_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = backend(monkeypatch, 10 * GIB)
    assert made.kv_budget_bytes(0.1, 9 * GIB) == 9 * GIB
    with pytest.raises(CapacityError, match=r"kv_cache_bytes=10737418240 .*10\.00 GiB are available"):
        made.kv_budget_bytes(0.1, 10 * GIB)


def test_no_memory_left_is_an_error_that_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CapacityError, match=r"memory_fraction=0\.85") as caught:
        backend(monkeypatch, GIB // 2).kv_budget_bytes(0.85, None)
    assert caught.value.hint


def test_threads_follow_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        assert backend(monkeypatch, GIB, threads=1).initialize(0) == torch.device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [0, -2, "many"])
def test_a_wrong_number_of_threads_is_an_error(monkeypatch: pytest.MonkeyPatch, threads: object) -> None:
    with pytest.raises(ConfigError) as caught:
        backend(monkeypatch, GIB, threads=threads).initialize(0)
    assert caught.value.field == "plugins.cpu.threads"
    assert caught.value.value == threads


def test_memory_is_that_of_this_host() -> None:
    info = CpuBackend(PluginContext()).memory()
    assert 0 < info.free_bytes <= info.total_bytes


def test_the_interface_defaults_hold_for_a_synchronous_device() -> None:
    made = CpuBackend(PluginContext())
    assert not made.capabilities.async_steps
    assert made.record_event() is None
    assert made.communicator() == "gloo"
