"""Shares of quantized weights over tensor-parallel ranks, put together again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized import EIGHT, Rank, context, dense, exact, fill, four_bit, library_int8, library_linear, tensors_of

from core.interfaces.errors import ConfigError, WeightError
from core.layers.embedding import LmHead
from core.layers.linear import LinearBase, MergedLinear, QkvLinear, RowLinear
from core.layers.moe import Experts
from plugin_bitsandbytes.cut import FINEST_BLOCK, Cut

SIZES = [2, 3, 4]


def matrix(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * 0.05


def config_of(kind: str) -> dict[str, Any]:
    return EIGHT if kind == "int8" else four_bit(kind)


def stored(weight: torch.Tensor, kind: str, nested: bool = False, block_size: int = 64) -> dict[str, torch.Tensor]:
    if kind == "int8":
        return tensors_of(library_int8(weight, 6.0))
    return tensors_of(library_linear(weight, kind, nested=nested, block_size=block_size))


def means(tensors: dict[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
    if "SCB" in tensors:
        return tensors["weight"] * tensors["SCB"].view(-1, 1) * 7.874015718698502e-3
    return exact(tensors, *shape)


def on_ranks(
    size: int, build: Callable[[Any], LinearBase], kind: str, tensors: dict[str, dict[str, torch.Tensor]]
) -> list[LinearBase]:
    layers = []
    for rank in range(size):
        layer = build(context(config_of(kind), rank=Rank(rank, size)))
        for part, given_tensors in tensors.items():
            fill(layer, given_tensors, part)
        layer.finish()
        layers.append(layer)
    return layers


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize(("nested", "block_size"), [(False, 64), (True, 64), (True, 256), (False, 32)])
def test_column_parallel(kind: str, size: int, nested: bool, block_size: int) -> None:
    """12 x 5 rows of 96: a head is 5 x 96 weights, no whole number of blocks of 64, but one of blocks of 32."""
    parts = {name: matrix(60, 96, seed) for seed, name in enumerate("qkv")}
    tensors = {name: stored(weight, kind, nested, block_size) for name, weight in parts.items()}
    layers = on_ranks(size, lambda ctx: QkvLinear("attn.qkv_proj", 96, 12, 12, 5, ctx, bias=False), kind, tensors)
    rows = 60 // size
    for number, name in enumerate("qkv"):
        together = torch.cat([dense(layer)[number * rows : (number + 1) * rows] for layer in layers])
        assert torch.equal(together, means(tensors[name], (60, 96)))


def test_replicated_heads() -> None:
    """More ranks than KV heads: several ranks keep the same one."""
    parts = {"q": matrix(64, 64, 1), "k": matrix(32, 64, 2), "v": matrix(32, 64, 3)}
    tensors = {name: stored(weight, "nf4", True) for name, weight in parts.items()}
    layers = on_ranks(4, lambda ctx: QkvLinear("attn.qkv_proj", 64, 4, 2, 16, ctx, bias=False), "nf4", tensors)
    for rank, layer in enumerate(layers):
        wanted = [
            exact(tensors["q"], 64, 64)[16 * rank :][:16],
            exact(tensors["k"], 32, 64)[16 * (rank // 2) :][:16],
            exact(tensors["v"], 32, 64)[16 * (rank // 2) :][:16],
        ]
        assert torch.equal(dense(layer), torch.cat(wanted))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize(("nested", "block_size"), [(False, 64), (True, 128), (False, 32)])
def test_row_parallel(kind: str, size: int, nested: bool, block_size: int) -> None:
    tensors = stored(matrix(10, 384), kind, nested, block_size)
    layers = on_ranks(size, lambda ctx: RowLinear("o_proj", 384, 10, ctx, bias=False), kind, {"": tensors})
    assert torch.equal(torch.cat([dense(layer) for layer in layers], 1), means(tensors, (10, 384)))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_row_parallel_bias_counts_once(kind: str) -> None:
    bias = torch.ones(10)
    tensors = stored(matrix(10, 128), kind) | {"bias": bias}
    layers = on_ranks(2, lambda ctx: RowLinear("o_proj", 128, 10, ctx, bias=True), kind, {"": tensors})
    zero = torch.zeros(1, 64)
    assert torch.equal(sum(layer(zero) for layer in layers), bias.view(1, -1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_vocabulary_that_does_not_divide(kind: str, size: int) -> None:
    tensors = stored(matrix(61, 64), kind)
    config = {**config_of(kind), "llm_int8_skip_modules": []}
    heads = []
    for rank in range(size):
        head = LmHead("lm_head", 61, 64, context(config, rank=Rank(rank, size)))
        fill(head, tensors)
        head.finish()
        heads.append(head)
    together = torch.cat([dense(head) for head in heads])
    assert torch.equal(together[:61], means(tensors, (61, 64)))
    assert not together[61:].any()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantizing_while_loading_takes_any_cut(kind: str) -> None:
    """Each rank quantizes its own share: 11 x 13 rows and 143 columns on 11 ranks."""
    weight = matrix(6, 143)
    for rank in range(11):
        layer = RowLinear("o_proj", 143, 6, context(None, rank=Rank(rank, 11), format=kind), bias=False)
        fill(layer, {"weight": weight})
        layer.finish()
        share = weight[:, 13 * rank : 13 * (rank + 1)].contiguous()
        assert torch.equal(dense(layer), means(stored(share, kind), (6, 13)))


@pytest.mark.parametrize("size", SIZES)
def test_quantizing_while_loading_equals_one_rank_where_blocks_align(size: int) -> None:
    weight = matrix(10, 64 * 12)
    wanted = exact(stored(weight, "nf4"), 10, 64 * 12)
    got = []
    for rank in range(size):
        layer = RowLinear("o_proj", 64 * 12, 10, context(None, rank=Rank(rank, size), format="nf4"), bias=False)
        fill(layer, {"weight": weight})
        layer.finish()
        got.append(dense(layer))
    assert torch.equal(torch.cat(got, 1), wanted)


@pytest.mark.parametrize(
    ("build", "wanted", "sizes"),
    [
        (lambda ctx: RowLinear("o_proj", 96, 8, ctx, bias=False), "48 of 96 columns", "1, 3"),
        (lambda ctx: RowLinear("o_proj", 80, 8, ctx, bias=False), "40 of 80 columns", "1"),
        (
            lambda ctx: MergedLinear("gate_up", 20, {"gate": 12, "up": 12}, ctx, bias=False),
            "6 of 12 rows",
            "1",
        ),
        (
            lambda ctx: MergedLinear("gate_up", 48, {"gate": 12, "up": 12}, ctx, bias=False),
            None,
            "",
        ),
    ],
)
def test_cuts_through_blocks_are_refused_before_loading(build: Any, wanted: str | None, sizes: str) -> None:
    ctx = context(four_bit("nf4"), rank=Rank(1, 2))
    if wanted is None:
        build(ctx)
        return
    with pytest.raises(ConfigError, match=wanted) as caught:
        build(ctx)
    assert caught.value.field == "engine.tensor_parallel_size"
    assert caught.value.value == 2
    assert f"allows: {sizes};" in str(caught.value.hint)
    build(context(EIGHT, rank=Rank(1, 2)))
    build(context(None, rank=Rank(1, 2)))
    build(context({**four_bit("nf4"), "llm_int8_skip_modules": ["o_proj", "gate_up"]}, rank=Rank(1, 2)))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_projection_that_the_checkpoint_has_as_one(kind: str, size: int, nested: bool) -> None:
    """gate_up_proj as one module: core hands its tensors on without a part."""
    tensors = stored(matrix(48, 96), kind, nested) | {"bias": torch.arange(48.0)}
    wanted = means(tensors, (48, 96))
    gates, ups = [], []
    for rank in range(size):
        ctx = context(config_of(kind), rank=Rank(rank, size))
        layer = MergedLinear("gate_up_proj", 96, {"gate": 24, "up": 24}, ctx, bias=True, stacked=True)
        for suffix, tensor in tensors.items():
            assert layer.covers(suffix, "") <= layer.expected()
            layer.load(suffix, "", tensor)
        layer.finish()
        local = 24 // size
        gate, up = dense(layer).split(local)
        gates.append(gate)
        ups.append(up)
        zero = layer(torch.zeros(1, 96))[0]
        assert torch.equal(zero[:local], torch.arange(24.0)[rank * local :][:local])
    assert torch.equal(torch.cat(gates + ups), wanted)


def test_a_projection_as_one_whose_parts_share_a_block() -> None:
    ctx = context(four_bit("nf4"), rank=Rank(0, 2))
    with pytest.raises(ConfigError, match=r"gate_up_proj.gate is stored in 4-bit blocks"):
        MergedLinear("gate_up_proj", 24, {"gate": 6, "up": 6}, ctx, bias=False, stacked=True)


def test_a_left_out_layer_that_is_quantized_after_all() -> None:
    """The list of skipped modules promised that a cut would do."""
    config = {**four_bit("nf4"), "llm_int8_skip_modules": ["o_proj"]}
    layer = RowLinear("o_proj", 80, 8, context(config, rank=Rank(1, 2)), bias=False)
    with pytest.raises(ConfigError, match="40 of 80 columns"):
        fill(layer, stored(matrix(8, 80), "nf4"))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.sampled_from([8, 16, 32, 48, 64]), st.booleans(),
    st.sampled_from([32, 64, 128, 512]), st.booleans(),
)  # fmt: skip
def test_a_cut_is_exact_or_refused(
    rows: int, cols: int, size: int, unit: int, by_columns: bool, block_size: int, nested: bool
) -> None:
    """The law: whatever `check` lets pass is exact on every rank."""
    full_rows, full_cols = (rows, cols * size * unit // 8) if by_columns else (rows * size, cols * unit // 8)
    tensors = stored(matrix(full_rows, full_cols), "nf4", nested, block_size)
    whole = exact(tensors, full_rows, full_cols)
    shares = []
    for rank in range(size):
        if by_columns:
            local = full_cols // size
            cut = Cut("x", full_rows, full_cols, 0, full_rows, rank * local, local)
        else:
            local = full_rows // size
            cut = Cut("x", full_rows, full_cols, rank * local, local, 0, full_cols)
        extent = local if by_columns else local * full_cols
        exactly = extent % FINEST_BLOCK == 0 and (not by_columns or full_cols % FINEST_BLOCK == 0)
        try:
            cut.check()
        except ConfigError:
            assert not exactly
            return
        ctx = context({**four_bit("nf4"), "llm_int8_skip_modules": []}, rank=Rank(rank, size))
        layer: LinearBase = (
            RowLinear("x", full_cols, full_rows, ctx, bias=False)
            if by_columns
            else MergedLinear("x", full_cols, {"": full_rows}, ctx, bias=False)
        )
        fill(layer, tensors)
        layer.finish()
        shares.append(dense(layer))
    assert torch.equal(torch.cat(shares, 1 if by_columns else 0), whole)


@pytest.mark.parametrize("size", [1, *SIZES])
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_experts(kind: str, size: int) -> None:
    """The sum over the ranks is what the dequantized experts give; int8 rounds each rank's own activations."""
    full, hidden, num = 384, 64, 3
    weights = {
        (part, e): stored(matrix(hidden if part == "down" else full, full if part == "down" else hidden, e), kind)
        for part in ("gate", "up", "down")
        for e in range(num)
    }
    x = matrix(7, hidden, 9) * 20
    ids = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [0, 1], [2, 1], [1, 0]])
    scales = torch.rand(7, 2, generator=torch.Generator().manual_seed(1))
    got = torch.zeros(7, hidden)
    for rank in range(size):
        experts = Experts("mlp.experts", num, hidden, full, context(config_of(kind), rank=Rank(rank, size)))
        for (part, e), tensors in weights.items():
            for suffix, tensor in tensors.items():
                assert experts.covers(suffix, part, e) <= experts.expected()
                experts.load(suffix, part, tensor, e)
        experts.finish()
        assert experts.weights is None
        got += experts(x, ids, scales)
    wanted = torch.zeros(7, hidden)
    for token, chosen in enumerate(ids.tolist()):
        for slot, e in enumerate(chosen):
            gate, up = (means(weights[part, e], (full, hidden)) for part in ("gate", "up"))
            y = torch.nn.functional.silu(gate @ x[token]) * (up @ x[token])
            wanted[token] += scales[token, slot] * (means(weights["down", e], (hidden, full)) @ y)
    tolerance = 0.03 * float(wanted.abs().max()) if kind == "int8" else 1e-5
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance)


def test_experts_cut_through_blocks_are_refused_before_loading() -> None:
    with pytest.raises(ConfigError, match="24 of 48 columns") as caught:
        Experts("mlp.experts", 2, 64, 48, context(four_bit("nf4"), rank=Rank(0, 2)))
    assert caught.value.field == "engine.tensor_parallel_size"
    Experts("mlp.experts", 2, 64, 48, context(None, rank=Rank(0, 2)))


def test_an_expert_that_is_missing_its_state() -> None:
    experts = Experts("mlp.experts", 1, 64, 64, context(four_bit("nf4")))
    for part in ("gate", "up", "down"):
        tensors = stored(matrix(64, 64), "nf4")
        if part == "up":
            del tensors["weight.absmax"]
        for suffix, tensor in tensors.items():
            experts.load(suffix, part, tensor, 0)
    with pytest.raises(WeightError, match=r"mlp.experts.0.up_proj.weight.absmax is missing"):
        experts.finish()
