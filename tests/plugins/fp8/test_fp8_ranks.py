"""Tensor parallelism: what the ranks hold together is exactly what one rank holds, wherever a share's border falls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fp8_cases import BLOCK, CHANNEL, TENSOR, Rank, context, dense, fill, matrix, means, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from core.layers.linear import MergedLinear, QkvLinear, RowLinear
from core.layers.moe import Experts

CONFIGS = {"block": BLOCK, "channel": CHANNEL, "tensor": TENSOR}
SIZES = (1, 2, 4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(SIZES), st.booleans(), st.sampled_from(sorted(CONFIGS)))
def test_a_cut_is_exact(rows: int, cols: int, size: int, by_columns: bool, kind: str) -> None:
    """The law, for borders inside of blocks too."""
    full_rows, full_cols = (rows * 8, cols * size * 8) if by_columns else (rows * size * 8, cols * 8)
    config = CONFIGS[kind]
    tensors = stored(matrix(full_rows, full_cols), config)
    shares = []
    for rank in range(size):
        ctx = context(config, rank=Rank(rank, size))
        layer: Any = (
            RowLinear("x", full_cols, full_rows, ctx, bias=False)
            if by_columns
            else MergedLinear("x", full_cols, {"": full_rows}, ctx, bias=False)
        )
        fill(layer, tensors)
        layer.finish()
        shares.append(dense(layer))
    whole = torch.cat(shares, 1 if by_columns else 0)
    # Scale times number is rounded once, to float32.
    torch.testing.assert_close(whole, means(tensors), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_gate_and_up_whose_shares_cut_blocks(kind: str, size: int) -> None:
    """As DeepSeek's and Qwen's MLPs at 4 ranks: 192 rows each, 48 a rank, blocks of 128."""
    config, full = CONFIGS[kind], 192
    gate, up = (stored(matrix(full, 160, seed), config) for seed in (1, 2))
    local = full // size
    for rank in range(size):
        layer = MergedLinear(
            "gate_up_proj", 160, {"gate": full, "up": full}, context(config, rank=Rank(rank, size)), bias=False
        )
        fill(layer, gate, "gate")
        fill(layer, up, "up")
        layer.finish()
        rows = slice(rank * local, (rank + 1) * local)
        wanted = torch.cat([means(gate)[rows], means(up)[rows]])
        torch.testing.assert_close(dense(layer), wanted, rtol=1e-6, atol=0)
        x = matrix(5, 160, 7) * 12
        got = layer(x).double()
        assert float((got - x.double() @ wanted.t()).norm() / (x.double() @ wanted.t()).norm()) < 0.05


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_projection_that_the_checkpoint_has_as_one(kind: str, size: int) -> None:
    """gate_up_proj as one module, whose parts meet inside a block."""
    config = CONFIGS[kind]
    tensors = stored(matrix(2 * 80, 96), config)
    gates, ups = [], []
    for rank in range(size):
        ctx = context(config, rank=Rank(rank, size))
        layer = MergedLinear("gate_up_proj", 96, {"gate": 80, "up": 80}, ctx, bias=False, stacked=True)
        for suffix, tensor in tensors.items():
            assert layer.covers(suffix, "") <= layer.expected()
            layer.load(suffix, "", tensor)
        layer.finish()
        gate, up = dense(layer).split(80 // size)
        gates.append(gate)
        ups.append(up)
    torch.testing.assert_close(torch.cat(gates + ups), means(tensors), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_key_heads_that_several_ranks_keep(kind: str) -> None:
    config = CONFIGS[kind]
    parts = {"q": stored(matrix(4 * 40, 64, 1), config), "k": stored(matrix(2 * 40, 64, 2), config),
             "v": stored(matrix(2 * 40, 64, 3), config)}  # fmt: skip
    for rank in range(4):
        layer = QkvLinear("qkv_proj", 64, 4, 2, 40, context(config, rank=Rank(rank, 4)), bias=False)
        for part, tensors in parts.items():
            fill(layer, tensors, part)
        layer.finish()
        q, k, v = dense(layer).split(40)
        torch.testing.assert_close(q, means(parts["q"])[40 * rank :][:40], rtol=1e-6, atol=0)
        torch.testing.assert_close(k, means(parts["k"])[40 * (rank // 2) :][:40], rtol=1e-6, atol=0)
        torch.testing.assert_close(v, means(parts["v"])[40 * (rank // 2) :][:40], rtol=1e-6, atol=0)


def experts_of(config: Any, full: int, hidden: int, num: int) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    return {
        (part, e): stored(
            matrix(hidden if part == "down" else full, full if part == "down" else hidden, 10 * e), config
        )
        for part in ("gate", "up", "down")
        for e in range(num)
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize("full", [384, 192])  # 96 and 48 a rank at 4: borders inside of blocks
def test_experts(kind: str, size: int, full: int) -> None:
    """The ranks' results add up to what the dequantized experts give, as far as 8-bit inputs allow."""
    config, hidden, num = CONFIGS[kind], 144, 3
    weights = experts_of(config, full, hidden, num)
    x = matrix(7, hidden, 9) * 12
    ids = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [0, 1], [2, 1], [1, 0]])
    scales = torch.rand(7, 2, generator=torch.Generator().manual_seed(1))
    got = torch.zeros(7, hidden)
    for rank in range(size):
        experts = Experts("mlp.experts", num, hidden, full, context(config, rank=Rank(rank, size)))
        for (part, e), tensors in weights.items():
            for suffix, tensor in tensors.items():
                assert experts.covers(suffix, part, e) <= experts.expected()
                experts.load(suffix, part, tensor, e)
        experts.finish()
        got += experts(x, ids, scales)
    wanted = torch.zeros(7, hidden, dtype=torch.float64)
    for token, chosen in enumerate(ids.tolist()):
        for slot, e in enumerate(chosen):
            gate, up, down = (means(weights[part, e]) for part in ("gate", "up", "down"))
            row = x[token].double()
            wanted[token] += scales[token, slot] * (down @ (torch.nn.functional.silu(gate @ row) * (up @ row)))
    assert float((got.double() - wanted).norm() / wanted.norm()) < 0.06
