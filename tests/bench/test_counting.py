"""Counts of bytes and operations against numbers worked out by hand, and against brute force."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.bench.ceilings import Ceilings, measure_ceilings
from core.bench.counting import CacheCounts, ExpertCounts, ModelCounts, count_model, held_bytes, sum_of_keys
from core.bench.roofline import limit_figure, limit_of
from core.bench.workloads import WORKLOADS, Workload
from core.distributed.single import SingleProcess
from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.layers.moe import TorchNativeMoe
from core.layers.unquantized import Unquantized
from core.ops.table import build_ops
from core.registry import Catalog

SHAPES = Path(__file__).parents[2] / "bench" / "shapes"


def counts_of(name: str, dtype: torch.dtype, kv_itemsize: float) -> ModelCounts:
    """Of a shape on no device at all."""
    config = json.loads((SHAPES / name / "config.json").read_text())
    arch = Catalog.scan().load("models", config["architectures"][0])
    spec = arch.spec(config)
    made = PluginContext(device=torch.device("meta"))
    ctx = BuildContext(
        dtype=dtype, device=torch.device("meta"), ops=build_ops(), quant=Unquantized(None, made),
        moe=TorchNativeMoe(made), tp=SingleProcess(), max_tokens=64, context_length=64,
    )  # fmt: skip
    return count_model(arch.build(spec, ctx), spec, tp_size=1, kv_itemsize=kv_itemsize)


def test_the_tiny_shape_by_hand() -> None:
    counts = counts_of("tiny", torch.float32, 4.0)
    attention = 64 * (64 + 2 * 32) + 64 * 64 + 2 * 16  # q, k and v; output; norms of query and key heads
    dense_mlp = 3 * 64 * 128
    router = 8 * 64
    norms = 2 * 64 * 2 + 64  # two a layer, and the last
    assert counts.dense_bytes == 4 * (2 * attention + dense_mlp + router + norms)
    assert counts.dense_ops == 2 * (2 * (attention - 2 * 16) + dense_mlp + router)
    assert counts.head_bytes == 4 * 512 * 64
    assert counts.head_ops == 2 * 512 * 64
    assert counts.embedding_row_bytes == 4 * 64
    (experts,) = counts.experts
    assert experts == ExpertCounts(8, 2, 4 * 3 * 64 * 32, 2 * 3 * 64 * 32)
    (cache,) = counts.caches
    assert cache == CacheCounts(2 * 2 * 2 * 16 * 4, 2 * 2 * 4 * (16 + 16), None)
    assert counts.weight_bits == 32


def test_the_large_shapes_are_what_their_names_say() -> None:
    """Billions of parameters as published, and the bytes a step as in the notes on their limits."""
    llama = counts_of("llama-3.1-8b", torch.bfloat16, 2.0)
    table = 128256 * 4096
    assert (llama.dense_bytes + llama.head_bytes) / 2 + table == pytest.approx(8.03e9, rel=0.001)
    assert llama.weight_bytes(1, 1) == pytest.approx(15.01e9, rel=0.001)
    assert llama.cache_bytes(1) == 131072
    assert llama.weight_bits == 16
    qwen = counts_of("qwen3-30b-a3b", torch.bfloat16, 2.0)
    stored = qwen.dense_bytes + qwen.head_bytes + sum(e.num_experts * e.bytes_each for e in qwen.experts)
    assert stored / 2 + 151936 * 2048 == pytest.approx(30.5e9, rel=0.002)
    active = qwen.weight_bytes(1, 1) / 2 + 151936 * 2048
    assert active == pytest.approx(3.35e9, rel=0.01)


@given(st.integers(1, 60), st.data())
def test_keys_are_those_that_a_causal_window_lets_through(context: int, data: st.DataObject) -> None:
    queries = data.draw(st.integers(1, context))
    window = data.draw(st.none() | st.integers(1, 70))
    seen = sum(min(position + 1, window or context) for position in range(context - queries, context))
    assert sum_of_keys(context, queries, window) == seen


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_expected_experts_are_those_that_chance_gives(tokens: int) -> None:
    rng = np.random.default_rng(0)
    layer = ExpertCounts(16, 4, 1.0, 1)
    drawn = [len({int(e) for _ in range(tokens) for e in rng.choice(16, 4, replace=False)}) for _ in range(2000)]
    assert layer.touched(tokens) == pytest.approx(np.mean(drawn), rel=0.02)
    assert layer.touched(1) == pytest.approx(4)


def test_memory_that_two_names_hold_counts_once() -> None:
    module = torch.nn.Linear(4, 6, bias=False)
    module.__dict__["kernel_weight"] = module.weight.data
    module.register_buffer("scale", torch.ones(6))
    assert held_bytes(module) == 4 * 24 + 4 * 6
    module.__dict__["packed"] = ({"more": torch.zeros(3, dtype=torch.uint8)},)
    assert held_bytes(module) == 4 * 24 + 4 * 6 + 3


COUNTS = ModelCounts(
    dense_bytes=1000, dense_ops=2000, head_bytes=300, head_ops=600, embedding_row_bytes=10,
    experts=(ExpertCounts(4, 4, 50.0, 100),), caches=(CacheCounts(7.0, 3, None),), weight_bits=16,
)  # fmt: skip


def test_limits_by_hand() -> None:
    """Memory so fast that only operations count, and the other way round."""
    work = Workload("x", 2, 5, 3, "output_tokens_per_s")
    compute = limit_of(work, COUNTS, Ceilings(1e30, 1.0), chunk_tokens=100)
    prefill = 10 * (2000 + 400) + 2 * 600 + 2 * 3 * 15
    decode = [2 * (2000 + 400 + 600) + 2 * 3 * context for context in (6, 7)]
    assert compute.prefill_s == pytest.approx(prefill)
    assert compute.decode_s == pytest.approx(sum(decode))
    assert compute.bound == "compute"
    assert limit_figure(work, compute) == pytest.approx(6 / compute.total_s)
    memory = limit_of(work, COUNTS, Ceilings(1.0, 1e30), chunk_tokens=100)
    assert memory.prefill_s == pytest.approx(1000 + 300 + 200 + 100 + 2 * 7 * 5)
    assert memory.decode_s == pytest.approx(sum(1000 + 300 + 200 + 20 + 2 * 7 * context for context in (6, 7)))
    assert memory.bound == "memory"


def test_a_common_prefix_is_read_once() -> None:
    work = Workload("x", 3, 1, 2, "ms_per_token", prefix_len=10)
    limit = limit_of(work, COUNTS, Ceilings(1.0, 1e30), chunk_tokens=100)
    assert limit.decode_s == pytest.approx(1000 + 300 + 200 + 30 + 7 * 10 + 3 * 7 * 2)
    assert limit_figure(work, limit) == pytest.approx(limit.decode_s * 1e3)


def test_chunks_read_the_weights_again() -> None:
    work = Workload("x", 1, 10, 1, "input_tokens_per_s")
    ceilings = Ceilings(1.0, 1e30)
    whole = limit_of(work, COUNTS, ceilings, chunk_tokens=10).prefill_s
    halves = limit_of(work, COUNTS, ceilings, chunk_tokens=5).prefill_s
    assert halves == pytest.approx(whole + 1000 + 300 + 200)


def test_small_weights_are_held_against_the_small_product() -> None:
    ceilings = Ceilings(1.0, 10.0, 20.0)
    assert ceilings.ops_per_s(8) == 20.0
    assert ceilings.ops_per_s(16) == 10.0
    assert Ceilings(1.0, 10.0).ops_per_s(8) == 10.0


def test_a_start_has_no_limit() -> None:
    assert limit_figure(WORKLOADS["W0"], limit_of(WORKLOADS["W0"], COUNTS, Ceilings(1.0, 1.0), 100)) is None


def test_ceilings_are_measured() -> None:
    found = measure_ceilings(torch.device("cpu"), torch.float32)
    assert found.copy_bytes_per_s > 1e8
    assert found.product_ops_per_s > 1e8
    assert found.product_8bit_ops_per_s is None
