"""A real, tiny model through the whole engine: in process, offline, in a child; and the memory plan's refusals."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from core.config.sections import CacheSettings, EngineSettings, ModelSettings, SchedulerSettings, Settings
from core.engine.build import build_engine
from core.engine.client import EngineRequest
from core.engine.make_runner import plan_pages
from core.engine.offline import OfflineEngine
from core.engine.process_client import ProcessClient
from core.interfaces.errors import CapacityError, CheckpointError, PluginMismatch, RequestError
from core.interfaces.params import SamplingParams
from core.registry.catalog import Catalog
from core.registry.lock import LockedPlugin, LockSet
from core.registry.resolve import resolve

pytest.importorskip("plugin_llama")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from core.testing.checkpoint import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "llama")


def make_settings(checkpoint: Path, **cache) -> Settings:
    return Settings(
        model=ModelSettings(model=str(checkpoint), dtype="float32"),
        cache=CacheSettings(**({"max_total_tokens": 1024, "page_size": 8} | cache)),
        scheduler=SchedulerSettings(max_running_requests=4, chunked_prefill_size=16),
        engine=EngineSettings(device="cpu", cpu_threads=1, random_seed=0),
    )


def requests(count: int = 9) -> list[EngineRequest]:
    rng = np.random.default_rng(0)
    return [
        EngineRequest(
            rng.integers(10, 200, size=3 + 7 * i, dtype=np.int32),
            SamplingParams(
                max_tokens=5 + i, temperature=0.0 if i % 2 else 1.0, ignore_eos=True, logprobs=2 if i == 3 else None
            ),
            seed=i,
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("overlap", [False, True])
def test_tokens_do_not_depend_on_company_or_overlap(checkpoint: Path, overlap: bool) -> None:
    settings = make_settings(checkpoint)
    phases = []
    # Automatic choice overlaps only on devices with streams; the engine can do it on a thread.
    resolution = replace(resolve(settings, Catalog.scan()), overlap=overlap)
    engine = build_engine(settings, resolution, lambda phase, fraction: phases.append((phase, fraction)))
    assert [phase for phase, _ in dict.fromkeys(phases) if phase != "weights"] == ["device", "KV cache", "warm-up"]
    assert ("weights", 1.0) in phases
    offline = OfflineEngine(engine)
    together = offline.generate(requests())
    alone = [offline.generate([one])[0] for one in requests()]
    assert [len(chunk.tokens) for chunk in together] == [5 + i for i in range(9)]
    assert [chunk.tokens for chunk in together] == [chunk.tokens for chunk in alone]
    assert all(chunk.finish_reason == "length" for chunk in together)
    # The second time, all whole pages of the prompt but its last token come from the prefix cache.
    assert [chunk.cached_tokens for chunk in alone] == [(2 + 7 * i) // 8 * 8 for i in range(9)]
    assert together[3].logprobs is not None
    assert [len(top.ids) for top in together[3].logprobs] == [2] * 8
    assert (engine.hello.num_pages, engine.hello.max_prompt_tokens) == (129, min(engine.hello.context_length, 1024) - 1)
    values = engine.stats()
    assert values["kv_pages"] == 128
    assert values["kv_usage_ratio"] == 0
    engine.flush_cache()
    engine.close()


async def test_in_a_child(checkpoint: Path) -> None:
    settings = make_settings(checkpoint)
    resolution = resolve(settings, Catalog.scan())
    engine = build_engine(settings, resolution)
    want = [chunk.tokens for chunk in OfflineEngine(engine).generate(requests())]
    engine.close()
    client = ProcessClient(settings, msgspec.msgpack.encode(resolution.lock()))

    async def collect(one: EngineRequest) -> list[int]:
        return [token async for chunk in client.generate(one) for token in chunk.tokens]

    try:
        hello = await client.start()
        varying = {"load_s": hello.load_s, "phases": hello.phases, "device_free_bytes": hello.device_free_bytes}
        assert hello == msgspec.structs.replace(engine.hello, **varying)
        assert await asyncio.gather(*map(collect, requests())) == want
        with pytest.raises(RequestError, match="token id 5000"):
            await collect(EngineRequest(np.array([5000], np.int32), SamplingParams(max_tokens=1)))
        with pytest.raises(RequestError, match="context length") as caught:
            await collect(EngineRequest(np.full(hello.context_length, 20, np.int32), SamplingParams(max_tokens=1)))
        assert caught.value.code == "context_length_exceeded"
    finally:
        await client.stop()


async def test_a_child_that_sees_other_plugins_refuses(checkpoint: Path) -> None:
    settings = make_settings(checkpoint)
    lock = LockSet((LockedPlugin("models", "NoSuchModel", "plugin-nobody", "1.0"),))
    client = ProcessClient(settings, msgspec.msgpack.encode(lock))
    with pytest.raises(PluginMismatch, match="plugin-nobody"):
        await client.start()


async def test_a_broken_checkpoint_reaches_the_parent(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    client = ProcessClient(make_settings(tmp_path))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        await client.start()


class Budget:
    def __init__(self, budget: int) -> None:
        self.budget = budget

    def kv_budget_bytes(self, fraction: float, requested_bytes: int | None) -> int:
        return self.budget if requested_bytes is None else requested_bytes


@pytest.mark.parametrize(
    ("budget", "cache", "pages"),
    [
        (1_000_000, {}, 353),  # 32 times 80 tokens and a token, and the null page
        (2_000, {}, 20),
        (100_000, {"kv_cache_bytes": 6_000}, 60),
        (100_000, {"max_total_tokens": 100}, 13),
        (300, {}, 3),
    ],
)
def test_memory_plan(budget: int, cache: dict, pages: int) -> None:
    settings = Settings(cache=CacheSettings(**cache), scheduler=SchedulerSettings(max_running_requests=4))
    resolution = SimpleNamespace(page_size=8, context_length=80)
    assert plan_pages(settings, resolution, Budget(budget), 100) == pages


@pytest.mark.parametrize(("budget", "cache"), [(299, {}), (0, {}), (100_000, {"max_total_tokens": 15})])
def test_too_little_memory_is_refused_with_numbers(budget: int, cache: dict) -> None:
    settings = Settings(cache=CacheSettings(**cache))
    resolution = SimpleNamespace(page_size=8, context_length=80)
    with pytest.raises(CapacityError, match="a page takes 100 bytes") as caught:
        plan_pages(settings, resolution, Budget(budget), 100)
    assert "--kv-cache-bytes" in caught.value.hint
