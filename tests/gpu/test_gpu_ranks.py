"""Tensor parallel over the GPUs of this machine: the answers of one GPU, and an error, soon, when a rank dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.engine.client import EngineRequest, TokenChunk
from core.interfaces.errors import EngineDead
from core.interfaces.params import SamplingParams
from tests.gpu.engines import GREEDY, ON_CPU, agree, demo_prompts, engine, say
from tests.gpu.test_gpu_engine import LEAST, NEAR

SIZES = {"max_running_requests": 8, "max_total_tokens": 4096, "context_length": 512}
DRAWN = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, max_tokens=16, ignore_eos=True, logprobs=2)
MOE: dict[str, Any] = {
    "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 128, "head_dim": 64, "hidden_size": 256,
    "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 4,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "max_position_embeddings": 2048,
}  # fmt: skip
MOST_S = 15.0  # between a rank's death and the error


def need(ranks: int) -> int:
    if ON_CPU and ranks > 2:
        pytest.skip("two ranks show as much where the CPU stands in")
    if not ON_CPU and torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs, {torch.cuda.device_count()} can be seen")
    return ranks


Answers = tuple[list[TokenChunk], list[TokenChunk]]


def answers(model: Path | None, dtype: str, ranks: int, graphs: str) -> tuple[Answers, Any]:
    """(greedy and drawn ones, what the runner counted)"""
    settings = {"nvidia": {"graphs": graphs}}
    with engine(model, dtype=dtype, tensor_parallel_size=ranks, plugins=settings, **SIZES) as made:
        return (made.generate(demo_prompts()), made.generate(demo_prompts(), DRAWN)), made.runner.stats


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path | None]:
    """The folder of a model; None for the bundled one."""

    @cache
    def made(kind: str) -> Path | None:
        if kind == "demo":
            return None
        pytest.importorskip("transformers")
        from core.testing.checkpoint import write_tiny_checkpoint

        return write_tiny_checkpoint(tmp_path_factory.mktemp("moe"), "qwen3_moe", vocab_size=4096, **MOE)

    return made


@pytest.fixture(scope="module")
def of_one(model_of: Callable[[str], Path | None]) -> Callable[[str, str], Answers]:
    """What one rank answers, computed once."""
    return cache(lambda kind, dtype: answers(model_of(kind), dtype, 1, "start")[0])


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_killed_rank_ends_requests_with_an_error(ranks: int) -> None:
    need(ranks)
    with engine(tensor_parallel_size=ranks, **SIZES) as made:
        made.generate(demo_prompts(), GREEDY)
        victim = made.engine.engine.executor._ranks._members[-1].process.pid
        killed: list[float] = []

        def shoot(index: int, chunk: Any) -> bool:
            if not killed:
                os.kill(victim, signal.SIGKILL)
                killed.append(time.perf_counter())
            return False

        long = SamplingParams(temperature=0.0, max_tokens=450, ignore_eos=True)
        asked = [prompt[:40] for prompt in demo_prompts()]
        with pytest.raises(EngineDead, match=f"rank {ranks - 1}"):
            made.engine.generate(requests(asked, long), shoot)
        noticed = time.perf_counter() - killed[0]
        begin = time.perf_counter()
    say(f"{ranks} ranks: a death is noticed after {noticed:.2f} s, closed after {time.perf_counter() - begin:.2f} s")
    assert noticed < MOST_S
    assert time.perf_counter() - begin < 2 * MOST_S


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    ("kind", "dtype", "graphs"),
    [
        ("demo", "float32", "start"),
        ("demo", "bfloat16", "start"),
        ("moe", "float32", "start"),
        ("demo", "float32", "off"),
    ],
)
def test_answers_are_those_of_one(
    kind: str, dtype: str, graphs: str, ranks: int, model_of: Callable[[str], Path | None],
    of_one: Callable[[str, str], Answers],
) -> None:  # fmt: skip
    if need(ranks) == 4 and graphs == "off":
        pytest.skip("two ranks show as much")
    want, want_drawn = of_one(kind, dtype)
    (got, got_drawn), stats = answers(model_of(kind), dtype, ranks, graphs)
    share = agree(want, got, NEAR[dtype])
    drawn = sum(a.tokens == b.tokens for a, b in zip(want_drawn, got_drawn, strict=True))
    firsts = [((a.logprobs or [])[0], (b.logprobs or [])[0]) for a, b in zip(want, got, strict=True)]
    off = max(abs(a.logprob - b.logprob) for a, b in firsts)
    say(
        f"{kind} {dtype}, {ranks} ranks, graphs {graphs}: {share:.0%} of tokens compared, drawn equal {drawn} of "
        f"{len(want_drawn)}, first log-probabilities off by {off:.2e}; {stats.replayed_steps} of {stats.steps} steps "
        "replayed"
    )
    if kind == "demo":  # the random one is undecided nearly everywhere
        assert share >= LEAST[dtype]
    assert off < (1e-3 if dtype == "float32" else 0.3)
    if dtype == "float32":
        assert drawn >= len(want_drawn) - 2
    assert ON_CPU or (stats.replayed_steps > stats.steps // 2) is (graphs == "start")


def requests(prompts: list[list[int]], params: SamplingParams) -> list[EngineRequest]:
    return [EngineRequest(np.array(prompt, np.int32), params, seed=index) for index, prompt in enumerate(prompts)]
