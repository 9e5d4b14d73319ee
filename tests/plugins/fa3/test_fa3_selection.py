"""Whether the backend is taken: by machine, library and model, with the reason."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fa3_backends import OnCpu

from core.attention.torch_native import TorchNativeAttention
from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError
from core.interfaces.spec import StateKind
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.registry.select_attention import choose_attention
from core.testing.contracts.attention_world import Rule, Shape
from plugin_fa3 import backend, device
from plugin_fa3.backend import Fa3Attention
from plugin_fa3.providers.flash_attn import FlashAttnProvider
from plugin_fa3.settings import Settings

SHAPE = Shape(kind=StateKind.FULL, head_dim=128, page_size=16, dtype=torch.bfloat16)


def _choose(asked: str) -> Any:
    catalog = Catalog.from_records([
        PluginRecord("attention", "fa3", "plugin-fa3", loaded=Fa3Attention, capabilities={"priority": 20}),
        PluginRecord("attention", "plain", "core", loaded=TorchNativeAttention),
    ])  # fmt: skip
    config = SHAPE.config(torch.device("cpu"))
    layers = [
        SimpleNamespace(cache_group=0, attention=next(iter(config.layers.values()))),
    ]
    spec: Any = SimpleNamespace(cache_groups=(config.group,), layers=layers)
    (choice,), page_size = choose_attention(
        asked, {}, spec, dtype="bfloat16", hardware="nvidia", page_size=None, wished_page_size=128,
        wish_reason="a test", catalog=catalog,
    )  # fmt: skip
    return choice, page_size


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "compute_capabilities", lambda: ((8, 0), (9, 0)))


def test_without_a_library_it_is_passed_over_and_stops_a_start_that_asks_for_it(
    hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "installed", list)
    choice, _ = _choose("auto")
    assert choice.name == "plain"
    assert dict(choice.rejected)["fa3"].startswith(
        "no FlashAttention-3 library is installed: pip install sglang-kernel"
    )
    with pytest.raises(ConfigError, match=r"attention_backend is 'fa3'.*pip install sglang-kernel"):
        _choose("fa3")


def test_with_a_library_it_is_taken_and_pages_become_its_nearest(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "installed", lambda: [FlashAttnProvider])
    choice, page_size = _choose("auto")
    assert choice.name == "fa3"
    assert int(page_size.value) == max(Fa3Attention.capabilities.page_sizes or ())


@pytest.mark.parametrize(("found", "text"), [((), "no NVIDIA GPU"), (((8, 0), (10, 0)), "8.0, 10.0")])
def test_another_gpu_is_named(found: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "compute_capabilities", lambda: found)
    monkeypatch.setattr(backend, "installed", lambda: [FlashAttnProvider])
    choice, _ = _choose("auto")
    assert choice.name == "plain"
    assert "compute capability 9.0" in dict(choice.rejected)["fa3"]
    assert text in dict(choice.rejected)["fa3"]


class _Nvml:
    """Two devices; calls as the driver's library has them."""

    def __init__(self, init: int = 0, broken: int = -1) -> None:
        self.init, self.broken, self.open = init, broken, 0

    def nvmlInit_v2(self) -> int:  # noqa: N802
        self.open += self.init == 0
        return self.init

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:  # noqa: N802
        handle._obj.value = index + 1
        return 3 if index == self.broken else 0

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:  # noqa: N802
        major._obj.value, minor._obj.value = 8 + handle.value - 1, 0
        return 0


@pytest.mark.parametrize(
    ("nvml", "found"), [(_Nvml(), ((8, 0), (9, 0))), (_Nvml(init=9), ()), (_Nvml(broken=0), ((9, 0),))]
)
def test_the_driver_is_asked(nvml: _Nvml, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    assert device.compute_capabilities.__wrapped__() == found
    assert nvml.open == 0


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert device.compute_capabilities.__wrapped__() == ()


def test_what_no_kernel_serves_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert OnCpu.rejects(SHAPE.config(cpu)) is None
    wide = replace(SHAPE, v_head_dim=64)
    assert OnCpu.rejects(wide.config(cpu)) == "values of 64 elements beside keys of 128"
    half = replace(SHAPE, dtype=torch.float16, rules=(Rule(has_sinks=True),))
    assert "sinks are read in bfloat16, the model computes in torch.float16" in str(OnCpu.rejects(half.config(cpu)))
    monkeypatch.setattr(backend, "installed", lambda: [FlashAttnProvider])
    sinks = replace(SHAPE, rules=(Rule(has_sinks=True),))
    assert "flash_attn_3 has no attention sinks" in str(OnCpu.rejects(sinks.config(cpu)))
    with pytest.raises(ConfigError, match="no attention sinks"):
        OnCpu(sinks.config(cpu), PluginContext(settings=Settings()))


def test_another_device_of_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU of the machine suits, the one that was given does not."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    reason = Fa3Attention.rejects(SHAPE.config(torch.device("cuda", 1)))
    assert reason == "cuda:1 has compute capability 8.0, it needs 9.0"


@pytest.mark.parametrize(
    ("value", "text"),
    [({"provider": "cutlass"}, "provider"), ({"num_splits": -1}, "num_splits"), ({"num_split": 2}, "num_split")],
)
def test_wrong_settings_are_named(value: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Settings(**value)
