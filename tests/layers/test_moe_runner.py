"""Both ways of the plain-PyTorch experts against the definition."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from core.distributed.single import SingleProcess
from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError
from core.interfaces.moe import ExpertWeights
from core.layers.moe import Experts, TorchNativeMoe
from core.layers.unquantized import Unquantized, UnquantizedExperts
from core.ops.reference import REFERENCES


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_both_paths_are_the_weighted_sum(data: st.DataObject) -> None:
    tokens, experts, hidden, inter = (data.draw(st.integers(1, n)) for n in (9, 6, 8, 7))
    top_k = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, gate_up, down = rand(tokens, hidden), rand(experts, 2 * inter, hidden), rand(experts, hidden, inter)
    weights, ids = rand(tokens, experts).softmax(-1).topk(top_k)
    wanted = torch.zeros(tokens, hidden)
    for t in range(tokens):
        for slot in range(top_k):
            e = int(ids[t, slot])
            gate, up = (gate_up[e] @ x[t]).split(inter)
            wanted[t] += weights[t, slot] * (down[e] @ (F.silu(gate) * up))
    runner = TorchNativeMoe(PluginContext())
    for run in (runner.run, runner._gathered, runner._looped):
        torch.testing.assert_close(run(x, ExpertWeights(gate_up, down), ids, weights), wanted, atol=1e-5, rtol=1e-4)


def test_bfloat16_keeps_its_dtype_and_sums_in_float32() -> None:
    x = torch.ones(1, 4, dtype=torch.bfloat16)
    gate_up = torch.ones(300, 2, 4, dtype=torch.bfloat16)
    down = torch.ones(300, 4, 1, dtype=torch.bfloat16)
    ids, weights = torch.arange(300)[None], torch.full((1, 300), 1 / 300)
    one = (F.silu(torch.tensor(4.0)) * 4).bfloat16()
    runner = TorchNativeMoe(PluginContext())
    for run in (runner._gathered, runner._looped):
        out = run(x, ExpertWeights(gate_up, down), ids, weights)
        assert out.dtype == torch.bfloat16
        # A running sum in bfloat16 would stall far below the mean of 300 equal terms.
        torch.testing.assert_close(out, torch.full((1, 4), float(one), dtype=torch.bfloat16))


def test_experts_in_a_format_that_the_runner_lacks_are_refused_when_the_layer_is_made() -> None:
    class Packed(UnquantizedExperts):
        format = "packed"

    class Method(Unquantized):
        def experts(self, path: str, sources: Sequence[str]) -> Packed:
            return Packed()

    ctx = BuildContext(
        dtype=torch.float32,
        device=torch.device("cpu"),
        ops=REFERENCES,
        quant=Method(None, PluginContext()),
        moe=TorchNativeMoe(PluginContext()),
        tp=SingleProcess(),
        max_tokens=4,
        context_length=8,
    )
    with pytest.raises(ConfigError, match=r"layers.0.experts in format 'packed'.*TorchNativeMoe.*it does: plain"):
        Experts("layers.0.experts", 2, 4, 4, ctx)
