"""A KV cache of eight bits through the whole engine, on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.config.sections import CacheSettings, EngineSettings, ModelSettings, SchedulerSettings, Settings
from core.engine.build import build_engine
from core.engine.client import EngineRequest
from core.engine.offline import OfflineEngine
from core.interfaces.params import SamplingParams
from core.registry.catalog import Catalog
from core.registry.resolve import resolve

pytest.importorskip("plugin_llama")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from core.testing.checkpoint import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "llama")


def run(checkpoint: Path, kv_cache_dtype: str) -> tuple[int, list[float]]:
    """(pages that a fixed budget gives, the log-probability of the first token of some prompts)."""
    settings = Settings(
        model=ModelSettings(model=str(checkpoint), dtype="float32"),
        cache=CacheSettings(kv_cache_bytes=1 << 20, page_size=8, kv_cache_dtype=kv_cache_dtype),  # type: ignore[arg-type]
        scheduler=SchedulerSettings(max_running_requests=4, chunked_prefill_size=16),
        engine=EngineSettings(device="cpu", attention_backend="torch_native", cpu_threads=1, random_seed=0),
    )
    engine = build_engine(settings, resolve(settings, Catalog.scan()))
    rng = np.random.default_rng(0)
    asked = [
        EngineRequest(
            rng.integers(10, 200, size=9 + 12 * i, dtype=np.int32),
            SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=1),
            seed=i,
        )
        for i in range(4)
    ]
    chunks = OfflineEngine(engine).generate(asked)
    found = [chunk.logprobs[0].logprob for chunk in chunks if chunk.logprobs is not None]
    assert len(found) == 4
    assert all(len(chunk.tokens) == 4 for chunk in chunks)
    pages = engine.hello.num_pages
    engine.close()
    return pages, [float(value) for value in found]


def test_more_tokens_in_the_same_memory_and_almost_the_same_numbers(checkpoint: Path) -> None:
    pages, exact = run(checkpoint, "auto")
    for name, most in (("bfloat16", 0.02), ("fp8", 0.2), ("fp8_e5m2", 0.3)):
        more, close = run(checkpoint, name)
        assert more == pytest.approx(pages * (2 if name == "bfloat16" else 4), rel=0.01)
        off = np.abs(np.array(close) - np.array(exact)).max()
        assert 0 < off < most, (name, off)
