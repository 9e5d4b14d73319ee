"""Core's hardware backend and the mock devices through their suite."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from core.registry.records import PluginRecord
from core.testing.contracts.hardware import HardwareContract
from core.testing.mock_graphs import MockGraphHardware
from core.testing.mock_hardware import MockAsyncHardware, MockHardware
from core.testing.mock_vendor import QUEUE_VARIABLE, MockVendorHardware, vendor_records


class TestCpu(HardwareContract):
    name = "cpu"


class TestNvidia(HardwareContract):
    """On a machine with such a GPU; elsewhere what can be asked without one."""

    name = "nvidia"
    other_attention = frozenset({"fa3", "triton", "flashinfer"})


class TestMock(HardwareContract):
    name = "mock"
    implementation = MockHardware
    light_probe = False


class TestMockAsync(HardwareContract):
    name = "mock_async"
    implementation = MockAsyncHardware
    light_probe = False


class TestMockGraphs(HardwareContract):
    name = "mock_graphs"
    implementation = MockGraphHardware
    light_probe = False


class TestMockVendor(HardwareContract):
    name = "mock_vendor"
    implementation = MockVendorHardware
    light_probe = False

    def companions(self) -> Iterable[PluginRecord]:
        return [record for record in vendor_records() if record.kind != "hardware"]

    @pytest.fixture(autouse=True)
    def _variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(QUEUE_VARIABLE, "2")


def test_broken_devices_are_caught(assert_caught: Callable[[str], None]) -> None:
    assert_caught("hardware")
