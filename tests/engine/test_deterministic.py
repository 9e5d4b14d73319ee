"""Deterministic mode: a request has the same bits alone and among 64, in chunks, from the cache, after a preemption."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from core.config.sections import CacheSettings, EngineSettings, ModelSettings, SchedulerSettings, Settings
from core.engine.build import build_engine
from core.engine.client import EngineRequest, TokenChunk
from core.engine.offline import OfflineEngine
from core.interfaces.errors import ConfigError
from core.interfaces.params import SamplingParams
from core.registry.catalog import Catalog
from core.registry.resolve import resolve

pytest.importorskip("plugin_llama")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from core.testing.checkpoint import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "llama")


def settings_of(
    checkpoint: Path, dtype: str = "float32", *, tokens: int = 4096, running: int = 64, **engine: object
) -> Settings:
    return Settings(
        model=ModelSettings(model=str(checkpoint), dtype=dtype),
        cache=CacheSettings(max_total_tokens=tokens, page_size=8),
        scheduler=SchedulerSettings(max_running_requests=running, chunked_prefill_size=96),
        engine=EngineSettings(**({"device": "cpu", "cpu_threads": 1, "deterministic": True} | engine)),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[OfflineEngine]:
    settings = settings_of(checkpoint, request.param)
    built = build_engine(settings, resolve(settings, Catalog.scan()))
    yield OfflineEngine(built)
    built.close()


def requests(count: int = 64) -> list[EngineRequest]:
    generator = np.random.default_rng(1)
    made = []
    for i in range(count):
        prompt = generator.integers(10, 200, size=int(generator.integers(2, 48)), dtype=np.int32)
        kind = ({"temperature": 0.0}, {"temperature": 0.9}, {"temperature": 1.0, "top_p": 0.9, "top_k": 30})[i % 3]
        sampling = SamplingParams(max_tokens=9, ignore_eos=True, logprobs=3, **kind)  # type: ignore[arg-type]
        made.append(EngineRequest(prompt, sampling, seed=i))
    return made


def bits(chunk: TokenChunk) -> list[tuple[int, float, list[int], list[float]]]:
    assert chunk.logprobs is not None
    return [
        (token, top.logprob, top.ids, top.logprobs) for token, top in zip(chunk.tokens, chunk.logprobs, strict=True)
    ]


def test_alone_and_among_64(engine: OfflineEngine) -> None:
    together = engine.generate(requests())
    for i in (1, 32, 63):
        engine.engine.flush_cache()
        (alone,) = engine.generate([requests()[i]])
        assert alone.cached_tokens == 0
        assert bits(alone) == bits(together[i])
        (again,) = engine.generate([requests()[i]])  # behind a cached prefix
        assert (again.cached_tokens or 0) >= len(requests()[i].prompt) // 8 * 8 - 8
        assert bits(again) == bits(together[i])


def test_the_same_seed_gives_the_same_text_at_any_batch_size(engine: OfflineEngine) -> None:
    one = EngineRequest(np.arange(20, 33, dtype=np.int32), SamplingParams(max_tokens=10, ignore_eos=True), seed=5)
    texts = set()
    for size in (1, 2, 7, 17):
        company = requests(size - 1)
        at = size // 2
        done = engine.generate([*company[:at], one, *company[at:]])
        texts.add(tuple(done[at].tokens))
    assert len(texts) == 1


def test_after_a_preemption(checkpoint: Path) -> None:
    settings = settings_of(checkpoint, tokens=200, running=4)
    built = build_engine(settings, resolve(settings, Catalog.scan()))
    offline = OfflineEngine(built)

    def made() -> list[EngineRequest]:
        sampling = SamplingParams(max_tokens=40, ignore_eos=True, logprobs=2)
        return [EngineRequest(np.arange(10 + i, 28 + i, dtype=np.int32), sampling, seed=i) for i in range(4)]

    together = offline.generate(made())
    preempted = built._scheduler.stats()["preemptions_total"]
    assert preempted > 0
    for i in range(4):
        built.flush_cache()
        assert bits(offline.generate([made()[i]])[0]) == bits(together[i])
    assert built._scheduler.stats()["preemptions_total"] == preempted
    built.close()


def test_what_cannot_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="depend on the batch, and deterministic is set"):
        resolve(settings_of(checkpoint, attention_backend="torch_native"), Catalog.scan())
    chosen = resolve(settings_of(checkpoint), Catalog.scan())
    assert [choice.name for choice in chosen.attention] == ["batch_invariant"]
    usual = resolve(settings_of(checkpoint, deterministic=False), Catalog.scan())
    assert "batch_invariant" not in [choice.name for choice in usual.attention]


def test_experts_are_refused_unless_they_can(tmp_path: Path) -> None:
    from core.testing.checkpoint import write_tiny_checkpoint

    pytest.importorskip("plugin_qwen")
    folder = write_tiny_checkpoint(
        tmp_path, "qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    )
    with pytest.raises(ConfigError, match="mixture-of-experts plugin") as caught:
        resolve(settings_of(folder), Catalog.scan())
    assert caught.value.field == "engine.deterministic"


def test_a_kernel_that_minds_its_company_is_found_at_start(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tiles some operation must betray itself, or the trial is worth nothing: here one that does."""
    import core.ops.fixed_rows as fixed

    def minds(ops, tile=0):  # type: ignore[no-untyped-def]
        linear = ops["linear"]
        return {**ops, "linear": lambda x, w, b=None: linear(x, w, b) * (1.0 + 1e-6 * x.shape[0])}

    monkeypatch.setattr(fixed, "fixed_rows", minds)
    settings = settings_of(checkpoint)
    with pytest.raises(ConfigError, match="other bits in a batch of"):
        build_engine(settings, resolve(settings, Catalog.scan()))
