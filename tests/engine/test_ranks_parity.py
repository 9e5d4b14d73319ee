"""Engines of several ranks give what one rank gives: real processes over Gloo, real checkpoints, float32."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.config.sections import CacheSettings, EngineSettings, ModelSettings, SchedulerSettings, Settings
from core.engine.build import build_engine
from core.engine.client import EngineRequest, TokenChunk
from core.engine.offline import OfflineEngine
from core.interfaces.params import GrammarParams, PoolingParams, SamplingParams
from core.registry.catalog import Catalog
from core.registry.resolve import resolve
from core.testing.checkpoint import write_tiny_checkpoint

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
STEPS = 32
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_hidden_layers": 3}
# By model type: fields of its configuration beside the tiny defaults (4 heads, 2 KV heads).
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "qwen3_moe": {"head_dim": 16, "num_experts": 8, "norm_topk_prob": True, **EXPERTS},
    "glm4_moe": {"head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, **EXPERTS},
}
PLUGINS = {"llama": "plugin_llama", "qwen3": "plugin_qwen", "qwen3_moe": "plugin_qwen", "glm4_moe": "plugin_glm4"}


@pytest.fixture(scope="module", params=list(SHAPES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name = request.param
    pytest.importorskip(PLUGINS[name])
    # A vocabulary that no number of ranks divides.
    return name, write_tiny_checkpoint(tmp_path_factory.mktemp(name), name, **SHAPES[name])


def make_settings(folder: Path, ranks: int, **model: Any) -> Settings:
    return Settings(
        model=ModelSettings(model=str(folder), dtype="float32", **model),
        cache=CacheSettings(max_total_tokens=1024, page_size=8),
        scheduler=SchedulerSettings(max_running_requests=4, chunked_prefill_size=16),
        engine=EngineSettings(device="cpu", cpu_threads=1, random_seed=0, tensor_parallel_size=ranks),
    )


class Running:
    """An engine, closed at the end."""

    def __init__(self, settings: Settings, overlap: bool = False) -> None:
        resolution = replace(resolve(settings, Catalog.scan()), overlap=overlap)
        self.engine = OfflineEngine(build_engine(settings, resolution), random_seed=0)

    def __enter__(self) -> OfflineEngine:
        return self.engine

    def __exit__(self, *_: object) -> None:
        self.engine.engine.close()


def greedy(**more: Any) -> SamplingParams:
    return SamplingParams(**({"max_tokens": STEPS, "temperature": 0.0, "ignore_eos": True, "logprobs": 3} | more))


def mixed(grammar: bool) -> list[EngineRequest]:
    """More requests than slots, of lengths below and above the token budget of a step, each asking something else."""
    rng = np.random.default_rng(0)
    wishes = [
        greedy(),
        greedy(temperature=1.0, top_p=0.9),
        greedy(prompt_logprobs=2),
        greedy(hidden_states="all", max_tokens=5),
        greedy(temperature=0.8, repetition_penalty=1.3, presence_penalty=0.5, logit_bias={20: 3.0}),
        greedy(temperature=1.2, top_k=20, min_tokens=4, ignore_eos=False),
    ]
    if grammar:
        fits = GrammarParams(kind="regex", text="[a-z ]{8,20}!")
        wishes += [greedy(grammar=fits, ignore_eos=False), greedy(grammar=fits, temperature=1.0, ignore_eos=False)]
    return [
        EngineRequest(rng.integers(10, 250, size=3 + 9 * index, dtype=np.int32), wish, seed=index)
        for index, wish in enumerate(wishes)
    ]


def check_equal(chunks: list[TokenChunk], want: list[TokenChunk]) -> None:
    for index, (chunk, wanted) in enumerate(zip(chunks, want, strict=True)):
        assert chunk.error is None, chunk.error
        assert chunk.tokens == wanted.tokens, index
        assert chunk.finish_reason == wanted.finish_reason
        assert chunk.cached_tokens == wanted.cached_tokens
        for mine, other in zip(chunk.logprobs or (), wanted.logprobs or (), strict=True):
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert (chunk.extras is None) == (wanted.extras is None)
        for mine_extra, other_extra in zip(chunk.extras or (), wanted.extras or (), strict=True):
            assert mine_extra.hidden_size == other_extra.hidden_size
            for name in ("hidden", "pooled"):
                a, b = (np.frombuffer(getattr(extra, name), np.float32) for extra in (mine_extra, other_extra))
                np.testing.assert_allclose(a, b, atol=1e-4)
            for a_top, b_top in zip(mine_extra.prompt_logprobs or (), other_extra.prompt_logprobs or (), strict=True):
                assert a_top.logprobs == pytest.approx(b_top.logprobs, abs=1e-4, nan_ok=True)


def has_grammar() -> bool:
    return any(record.kind == "grammar" and record.state == "available" for record in Catalog.scan().records)


@pytest.mark.parametrize(("ranks", "overlap"), [(2, True), (4, False)])
def test_any_request_over_several_ranks(
    model: tuple[str, Path], ranks: int, overlap: bool, caplog: pytest.LogCaptureFixture
) -> None:
    name, folder = model
    if ranks == 4 and name not in ("llama", "qwen3_moe"):
        pytest.skip("four ranks are tried with one dense model and one of experts")
    work = mixed(has_grammar())[:: 2 if ranks == 4 else 1]  # as many processes as that share few cores here
    with Running(make_settings(folder, 1)) as engine:
        want, again = engine.generate(work), engine.generate(work[:4])
    with caplog.at_level(logging.INFO, logger="core.engine"), Running(make_settings(folder, ranks), overlap) as engine:
        assert engine.engine.hello.effective["tensor_parallel_size"] == str(ranks)
        check_equal(engine.generate(work), want)
        cached = engine.generate(work[:4])
        check_equal(cached, again)
        assert any(chunk.cached_tokens for chunk in cached), "the prefix cache served some"
        engine.engine.flush_cache()
        check_equal(engine.generate(work[:1]), want[:1])
    if not overlap:
        check_against_transformers(folder, work[0], want[0])


def check_against_transformers(folder: Path, request: EngineRequest, chunk: TokenChunk) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(np.asarray(request.prompt, np.int64))[None]
    with torch.no_grad():
        made = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=STEPS, min_new_tokens=STEPS,
            eos_token_id=None,
        )  # fmt: skip
    assert chunk.tokens == made[0, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("plugin_qwen")
    return write_tiny_checkpoint(tmp_path_factory.mktemp("vectors"), "qwen3", **SHAPES["qwen3"])


def test_vectors_and_judgements(vectors: Path) -> None:
    rng = np.random.default_rng(1)
    asked = [
        PoolingParams(pooling="mean"), PoolingParams(pooling="last"), PoolingParams(head="tokens", tokens=(5, 9)),
        PoolingParams(pooling="first"),
    ]  # fmt: skip
    work = [
        EngineRequest(rng.integers(10, 250, size=5 + 14 * i, dtype=np.int32), SamplingParams(max_tokens=1), seed=0,
                      pooling=wish)
        for i, wish in enumerate(asked)
    ]  # fmt: skip
    work.append(EngineRequest(rng.integers(10, 250, size=9, dtype=np.int32), greedy(), seed=0))
    made = []
    for ranks in (1, 2):
        with Running(make_settings(vectors, ranks, pooling="mean")) as engine:
            made.append(engine.generate(work))
    check_equal(made[1], made[0])
