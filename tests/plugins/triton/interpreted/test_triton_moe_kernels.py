"""Kernels of the experts: every kind of tile, sorting, 8-bit formats against plain PyTorch, transformers' own block."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError
from core.interfaces.moe import ExpertWeights
from core.testing.contracts.base import relative_error
from core.testing.contracts.moe import loop
from plugin_triton.moe import chain, fp8
from plugin_triton.moe.configs import MoeConfig, Shape, Tile, write_table
from plugin_triton.moe.runner import TritonMoe, compute
from plugin_triton.moe.settings import Options
from plugin_triton.moe.sorting import max_blocks, sort_by_expert
from plugin_triton.moe.tune import Bench, tune

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SINGLE = MoeConfig(1, Tile(16, 64), Tile(32, 32, stages=3))
SORTED = MoeConfig(16, Tile(32, 64, group_m=4), Tile(32, 32, group_m=2))
SWAPPED = MoeConfig(32, Tile(32, 64, swap=True), Tile(64, 32, swap=True))
DESCRIBED = MoeConfig(16, Tile(32, 64, tma=True), Tile(32, 32, swap=True, tma=True))
CONFIGS = {"single": SINGLE, "sorted": SORTED, "swapped": SWAPPED, "described": DESCRIBED}


def made(num: int, hidden: int, inter: int, dtype: torch.dtype, seed: int = 0) -> ExpertWeights:
    generator = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(num, 2 * inter, hidden, generator=generator) * hidden**-0.5
    down = torch.randn(num, hidden, inter, generator=generator) * inter**-0.5
    return ExpertWeights(gate_up.to(dtype).to(DEVICE), down.to(dtype).to(DEVICE))


def batch(
    tokens: int, hidden: int, num: int, top_k: int, dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=generator).to(dtype)
    factors, ids = torch.rand(tokens, num, generator=generator).topk(top_k)
    return x.to(DEVICE), ids.to(DEVICE), factors.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_tile(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that tiles divide and others, several blocks of an expert, several groups of blocks."""
    monkeypatch.setattr(chain, "can_describe", lambda weight: weight.shape[-1] * weight.element_size() % 16 == 0)
    for tokens, num, top_k, hidden, inter in ((37, 3, 2, 64, 96), (5, 4, 3, 128, 48), (1, 2, 1, 40, 24)):
        weights = made(num, hidden, inter, dtype, tokens)
        x, ids, factors = batch(tokens, hidden, num, top_k, dtype, tokens)
        got = compute(x, weights, ids, factors, CONFIGS[name])
        want, usual = loop(x, weights, ids, factors)
        assert relative_error(got, want, usual) < (2e-5 if dtype == torch.float32 else 2e-2), (tokens, hidden, inter)


@pytest.mark.parametrize(
    ("tokens", "num", "top_k"), [(1, 8, 2), (64, 128, 8), (65, 60, 4), (600, 5, 3), (3, 1, 1), (700, 7, 7)]
)
@pytest.mark.parametrize("block_m", [16, 128])
def test_sorting(tokens: int, num: int, top_k: int, block_m: int) -> None:
    """Up to 1024 pairs in one kernel, more in two."""
    _, ids, _ = batch(tokens, 8, num, top_k, torch.float32)
    found = sort_by_expert(ids, num, block_m)
    flat, order = ids.flatten().cpu(), found.order.long().cpu()
    assert order.sort().values.equal(torch.arange(tokens * top_k))
    assert flat[order].equal(flat.sort().values)
    counts = flat.bincount(minlength=num)
    wanted, end = [], 0
    for expert, count in enumerate(counts.tolist()):
        start, end = end, end + count
        wanted += [[expert, row, end] for row in range(start, end, block_m)]
    assert len(wanted) <= found.max_blocks == max_blocks(tokens * top_k, num, block_m)
    blocks = found.blocks.cpu()
    assert blocks[:, : len(wanted)].t().tolist() == wanted
    assert (blocks[0, len(wanted) :] == -1).all()


def test_as_many_blocks_as_the_worst_routing_needs() -> None:
    """One pair more than whole blocks for each expert."""
    ids = torch.cat([torch.full((17,), expert) for expert in range(4)]).view(-1, 1).to(DEVICE)
    found = sort_by_expert(ids, 4, 16)
    assert found.max_blocks == 8
    assert found.blocks[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_token_may_choose_an_expert_twice() -> None:
    weights = made(3, 32, 32, torch.float32)
    x, ids, factors = batch(20, 32, 3, 2, torch.float32)
    ids[:, 1] = ids[:, 0]
    want, usual = loop(x, weights, ids, factors)
    for config in (SINGLE, SORTED):
        assert relative_error(compute(x, weights, ids, factors, config), want, usual) < 2e-5


@pytest.mark.parametrize("format_", [fp8.TENSOR, fp8.CHANNEL, fp8.BLOCK])
def test_8_bit_formats(format_: str) -> None:
    """Exactly what the format stands for: for few tokens as they are, for many rounded as the reference rounds."""
    hidden, inter = 160, 200  # the last blocks of scales are not whole
    plain = made(3, hidden, inter, torch.float32)
    weights = fp8.pack(plain, format_)
    x, ids, factors = batch(7, hidden, 3, 2, torch.float32)
    want, usual = loop(x, fp8.unpack(weights), ids, factors)
    single = MoeConfig(1, Tile(64, 64), Tile(64, 64))
    assert relative_error(compute(x, weights, ids, factors, single), want, usual) < 2e-5
    rounded = fp8.reference(x, weights, ids, factors)
    for config in (SORTED, SWAPPED):
        got = compute(x, weights, ids, factors, config)
        # A hidden value next to the middle of two 8-bit numbers may go the other way.
        assert relative_error(got, rounded.double(), usual) < 5e-3
    assert relative_error(rounded, loop(x, plain, ids, factors)[0], usual) < 0.1


def test_qwen3_moe_block_of_transformers() -> None:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=64, moe_intermediate_size=48, num_experts=8, num_experts_per_tok=3, norm_topk_prob=True
    )
    config._experts_implementation = "eager"
    block = Qwen3MoeSparseMoeBlock(config).to(DEVICE)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(1, 11, 64, device=DEVICE)
    with torch.no_grad():
        want = block(x)
        want = want[0] if isinstance(want, tuple) else want
        gate = block.gate
        factors, ids = (x[0] @ gate.weight.t()).softmax(-1).topk(3)
        factors = factors / factors.sum(-1, keepdim=True)
        weights = ExpertWeights(block.experts.gate_up_proj.contiguous(), block.experts.down_proj.contiguous())
        for chosen in (SINGLE, SORTED):
            got = compute(x[0], weights, ids, factors, chosen)
            assert relative_error(got, want[0].double()) < 2e-5


def test_runner_says_which_tiles_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shape = Shape(3, 2, 32, 16, "float32")
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    path = tmp_path / device.replace(" ", "_") / shape.file_name
    write_table(path, device, shape, [(1, SINGLE, {"us": 2.0}), (16, SORTED, {"us": 3.0})], {"triton": "x"})
    runner = TritonMoe(PluginContext(settings=Options(tables=tmp_path), device=DEVICE))
    weights = made(3, 32, 16, torch.float32)
    with caplog.at_level(logging.INFO, "core.plugin"):
        for tokens in (1, 2, 9, 20):
            x, ids, factors = batch(tokens, 32, 3, 2, torch.float32)
            want, usual = loop(x, weights, ids, factors)
            assert relative_error(runner.run(x, weights, ids, factors), want, usual) < 2e-5
    assert {entry: served.config for entry, served in runner.served[shape].items()} == {1: SINGLE, 16: SORTED}
    assert [record.getMessage() for record in caplog.records] == [f"experts {shape}: tiles of {path}"]
    other = TritonMoe(PluginContext(device=DEVICE))
    other.run(x, weights, ids, factors)
    assert list(other.served[shape]) == [None]
    assert "core tune-moe --experts 3 --top-k 2" in other.served[shape][None].source


def test_runner_refuses_weights_of_another_layout() -> None:
    runner = TritonMoe(PluginContext(device=DEVICE))
    weights = made(3, 32, 16, torch.float32)
    x, ids, factors = batch(2, 32, 3, 2, torch.float32)
    wrong = ExpertWeights(weights.gate_up[:, 1:], weights.down)
    with pytest.raises(ConfigError, match=r"gate_up is \[3, 31, 32\], not \[3, 32, 32\]; gate_up is not contiguous"):
        runner.run(x, wrong, ids, factors)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="times are faked here")
def test_tuner_takes_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel runs with each candidate; the pair whose layer is fastest wins, tiles that fail are told of."""
    from plugin_triton.moe import tune as module

    tiles = {0: [Tile(32, 32), Tile(3, 32), Tile(64, 32)], 1: [Tile(32, 32), Tile(64, 32)]}
    monkeypatch.setattr(module, "candidates", lambda block_m, kernel, weights: tiles[kernel])
    monkeypatch.setattr(module, "graph_us", lambda run: (run(), 7.0)[1])
    bench = Bench(Shape(3, 2, 32, 32, "fp8_channel"), DEVICE, layers=2, dtype=torch.bfloat16)
    times = {Tile(32, 32): 3.0, Tile(64, 32): 1.0}
    measured = bench.layer

    def layer(config: MoeConfig) -> module.Timed:
        assert measured(config).us == 3.5
        return module.Timed(times[config.gate_up] + 2 * times[config.down], 1.0, 1.0)

    monkeypatch.setattr(bench, "layer", layer)
    lines: list[str] = []
    found = list(tune(bench, 5, lines.append))
    assert [config for config, _ in found] == [
        MoeConfig(block_m, Tile(64, 32), Tile(64, 32)) for block_m in module.blocks_for(bench.shape, 5)
    ]
    assert any("Tile(block_n=3" in line and "Error" in line for line in lines)
