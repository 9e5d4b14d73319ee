"""The device without a GPU: what it says of one, and what it plans."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError

from core.interfaces.context import PluginContext
from core.interfaces.errors import CapacityError, ConfigError
from core.interfaces.hardware import EngineFacts, MemoryInfo
from core.testing.tiny_model import TinyModel, tiny_config
from plugin_nvidia import backend as module
from plugin_nvidia import graphs
from plugin_nvidia.backend import NvidiaBackend
from plugin_nvidia.graphs import graph_sizes, token_sizes
from plugin_nvidia.nvml import Gpu
from plugin_nvidia.settings import Settings
from plugin_nvidia.staging import StagingRing

GIB = 1 << 30
H200 = Gpu("NVIDIA H200", 140 * GIB, (9, 0))
T4 = Gpu("Tesla T4", 15 * GIB, (7, 5))


def make(**settings: Any) -> NvidiaBackend:
    return NvidiaBackend(PluginContext(settings=Settings(**settings)))


def seen(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu, reason: str = "", torch_reason: str | None = None) -> None:
    monkeypatch.setattr(module, "visible_gpus", lambda: (list(gpus), reason))
    monkeypatch.setattr(module, "_unusable_torch", lambda: torch_reason)


def facts(**changes: Any) -> EngineFacts:
    plain = EngineFacts(
        spec=TinyModel.spec(tiny_config()), dtype="bfloat16", attention=("triton",), quantization="none",
        moe="triton", page_size=16, context_length=128, max_seqs=8, max_tokens=64, tensor_parallel_size=1, overlap=True,
    )  # fmt: skip
    return replace(plain, **changes)


# Being found


def test_the_probe_describes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, H200, H200)
    found = NvidiaBackend.probe()
    assert found.available
    assert found.priority > 0, "before the CPU"
    assert found.description == "2 x NVIDIA H200, 140 GiB each"


def test_the_probe_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, reason="no NVIDIA driver: libnvidia-ml.so.1")
    assert NvidiaBackend.probe().reason == "no NVIDIA driver: libnvidia-ml.so.1"
    seen(monkeypatch, H200, torch_reason="torch is built without CUDA")
    found = NvidiaBackend.probe()
    assert not found.available
    assert found.reason == "torch is built without CUDA"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", "torch 2.13.0+cpu is built without CUDA"),
        ("__version__ = '2.11.0'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", None),
        ("__version__ = '2.1.0'\ncuda = '12.1'\n", None),
        (None, None),
    ],
)
def test_torch_is_judged_by_its_files(
    text: str | None, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "version.py").write_text(text)
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    told = module._unusable_torch()
    assert told is None if reason is None else told is not None and told.startswith(reason)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert module._unusable_torch() == "torch is not installed"


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, H200, T4)
    assert make().rejects(facts()) is None
    assert make().rejects(facts(tensor_parallel_size=2)) == (
        "Tesla T4 does not compute in bfloat16; use --dtype float16"
    )
    assert make().rejects(facts(tensor_parallel_size=2, dtype="float16")) is None
    told = make().rejects(facts(tensor_parallel_size=4))
    assert told is not None
    assert "4, and 2 GPUs can be seen" in told
    assert "--tensor-parallel-size 2" in told


@pytest.mark.parametrize("settings", [{"graphs": "sometimes"}, {"max_graph_rows": 0}, {"unheard": 1}])
def test_wrong_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        make(**settings)


def test_a_rank_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"rank 1 has no GPU: torch .* sees 1"):
        make().initialize(1)


# Memory


def planned(monkeypatch: pytest.MonkeyPatch, *, free: int, step: int = 0, **settings: Any) -> NvidiaBackend:
    """A device of 100 GiB with `free` GiB left of 99 that were free at first, and steps that take up to `step` GiB."""
    made = make(reserve_mib=1024, **settings)
    made._free_at_start, made._step_bytes = 99 * GIB, step * GIB
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(made, "memory", lambda: MemoryInfo(100 * GIB, free * GIB))
    return made


def test_one_budget_for_weights_and_kv(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(monkeypatch, free=83).kv_budget_bytes(0.85, None) == (85 - 16) * GIB, "16 GiB are weights"


def test_the_largest_step_always_fits_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(monkeypatch, free=83, step=20).kv_budget_bytes(0.9, None) == (83 - 20 - 1) * GIB
    assert planned(monkeypatch, free=83, step=20).kv_budget_bytes(0.5, None) == (50 - 16) * GIB, "there is room"


def test_memory_that_others_hold_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(monkeypatch, free=20)
    made._free_at_start = 30 * GIB
    assert made.kv_budget_bytes(0.85, None) == 19 * GIB


def test_a_request_is_taken_exactly_or_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(monkeypatch, free=50, step=9)
    assert made.kv_budget_bytes(0.1, 40 * GIB) == 40 * GIB
    with pytest.raises(CapacityError, match=r"kv_cache_bytes=42949672961 .*50\.00 of 100\.00 GiB are free") as caught:
        made.kv_budget_bytes(0.9, 40 * GIB + 1)
    assert str(40 * GIB) in str(caught.value.hint)


def test_no_memory_left_is_an_error_that_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CapacityError, match=r"memory_fraction=0\.5 .*60\.00 GiB of weights"):
        planned(monkeypatch, free=39).kv_budget_bytes(0.5, None)


# Graphs


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 9, 16, 63, 64, 100, 256, 257, 1000])
def test_sizes_grow_to_the_largest_step(most: int) -> None:
    sizes = graph_sizes(most)
    assert sizes[-1] == most
    assert list(sizes) == sorted(set(sizes))
    assert len(sizes) < 35
    for size, smaller in zip(sizes[1:], sizes, strict=False):
        assert size - smaller <= max(8, smaller), "at most twice what is needed"


@pytest.mark.parametrize("most", [0, 1, 16, 17, 128, 300, 512])
def test_token_sizes(most: int) -> None:
    sizes = token_sizes(most)
    assert list(sizes) == sorted(set(sizes))
    assert (sizes[-1] if sizes else 0) == most
    assert len(sizes) <= 8
    for size, smaller in zip(sizes[1:], sizes, strict=False):
        assert size - smaller <= max(16, smaller), "at most twice what is needed"


@pytest.mark.parametrize(
    ("max_seqs", "context_length", "settings", "most"),
    [
        (8, 128, {}, 64), (8, 5, {}, 40), (8, 128, {"max_graph_tokens": 24}, 24), (8, 128, {"max_graph_tokens": 0}, 0),
    ],
)  # fmt: skip
def test_no_more_tokens_are_recorded_than_a_step_can_have(
    max_seqs: int, context_length: int, settings: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    given = replace(facts(), max_seqs=max_seqs, context_length=context_length)
    made = make(**settings).graphs(given)
    assert made is not None
    assert max(made.token_sizes, default=0) == most
    assert Settings().max_graph_tokens == 512


def test_memory_of_a_broken_recording_is_not_recorded_into_again(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(9))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, next(numbers)))
    used: list[Any] = []

    class Recording:
        pieces: ClassVar[list[Any]] = [lambda: None]

        def __init__(self, pool: Any) -> None:
            used.append(pool)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            if error[0] is not None:
                raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(graphs, "_Recording", Recording)
    made, calls, broken = graphs.CudaStepGraphs((1,)), [0], 4

    def run() -> tuple[torch.Tensor, ...]:  # each recording runs it twice: as it is, and while it is recorded
        calls[0] += 1
        if calls[0] == broken:
            raise ValueError("a value was looked at")
        return ()

    made.capture(1, run)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        made.capture(1, run)
    made.capture(1, run)
    made.capture(1, run)
    assert used == [(0, 0), (0, 0), (0, 1), (0, 1)]


def test_graphs_can_be_off() -> None:
    assert make(graphs="off").graphs(facts()) is None


# Staging


@dataclass
class Fence:
    waited: int = 0

    def synchronize(self) -> None:
        self.waited += 1


def test_a_segment_is_given_out_again_after_its_fence() -> None:
    ring = StagingRing(segment_bytes=256, num_segments=2, pinned=False)
    fences = [Fence() for _ in range(4)]
    places = []
    for fence in fences:
        first, second = ring.take(10), ring.take(100)
        assert first.shape == (10,)
        assert second.data_ptr() >= first.data_ptr() + 10
        assert second.data_ptr() % 64 == first.data_ptr() % 64 == 0
        places.append(first.data_ptr())
        ring.close(fence)
    assert places[0] == places[2] != places[1] == places[3]
    assert [fence.waited for fence in fences] == [1, 1, 0, 0]


def test_what_does_not_fit_gets_memory_of_its_own() -> None:
    ring = StagingRing(segment_bytes=256, num_segments=2, pinned=False)
    taken = [ring.take(200), ring.take(200), ring.take(1000)]
    for number, part in enumerate(taken, 1):
        part.fill_(number)
    assert [int(part.float().mean()) for part in taken] == [1, 2, 3]
    ring.close(Fence())
    before = ring.take(1).data_ptr()
    fence = Fence()
    ring.close(fence)
    ring.close(fence)  # nothing was taken since: the segment stays
    assert ring.take(1).data_ptr() != before


def test_variables_of_core_dumps() -> None:
    made = make().core_dump_environment("/dumps")
    assert made["CUDA_COREDUMP_FILE"] == "/dumps/%h.%p.%t.core"
    assert made["CUDA_ENABLE_COREDUMP_ON_EXCEPTION"] == "1"
