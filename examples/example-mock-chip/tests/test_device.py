"""What is the chip's own: its refusals, its operations and its layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from example_mock_chip.device import PaperChip
from example_mock_chip.layers import PaperMlp
from example_mock_chip.ops import PaperOps, TurnedWeight
from example_mock_chip.settings import Options

from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.errors import CapacityError
from core.interfaces.hardware import EngineFacts
from core.interfaces.spec import ModelSpec
from core.layers.mlp import GatedMlp
from core.layers.moe import TorchNativeMoe
from core.layers.unquantized import Unquantized
from core.ops import reference
from core.ops.table import build_ops
from core.testing.mock_runner import SingleRank

CHIP = PaperChip(PluginContext(settings=Options(memory_mib=1)))


def facts(**changes: Any) -> EngineFacts:
    usual = {
        "spec": ModelSpec("Any", 8, 8, (), (), 8), "dtype": "float32", "attention": ("paper",), "quantization": "none",
        "moe": "torch_native", "page_size": 8, "context_length": 64, "max_seqs": 4, "max_tokens": 64,
        "tensor_parallel_size": 1, "overlap": False,
    }  # fmt: skip
    return EngineFacts(**{**usual, **changes})


def test_refusals_name_the_way_out() -> None:
    assert CHIP.rejects(facts()) is None
    assert "--page-size 8" in (CHIP.rejects(facts(page_size=4)) or "")
    assert "--tensor-parallel-size 1" in (CHIP.rejects(facts(tensor_parallel_size=2)) or "")


def test_memory_is_what_the_setting_says() -> None:
    assert CHIP.memory().total_bytes == 1 << 20
    assert CHIP.kv_budget_bytes(0.5, None) == 1 << 19
    with pytest.raises(CapacityError, match="does not fit") as caught:
        CHIP.kv_budget_bytes(0.5, 2 << 20)
    assert "paper.memory_mib" in (caught.value.hint or "")


def test_operations_equal_the_references() -> None:
    table = build_ops(PaperOps(PluginContext()).ops())  # raises where a name or a pair is wrong
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((5, 12), (8, 12), (8,)))
    packed = table["pack_linear_weight"](weight)
    assert isinstance(packed, TurnedWeight)
    for b in (None, bias):
        torch.testing.assert_close(table["linear"](x, packed, b), reference.linear(x, weight, b))
    torch.testing.assert_close(table["silu_and_mul"](x), reference.silu_and_mul(x))


def test_layer_in_strips() -> None:
    """The chip's layer has the tensors of core's, and computes the same."""
    ctx = BuildContext(
        dtype=torch.float32, device=torch.device("cpu"), ops=build_ops(), quant=Unquantized(None, PluginContext()),
        moe=TorchNativeMoe(PluginContext()), tp=SingleRank(), max_tokens=64, context_length=64,
        layers=CHIP.layers(),
    )  # fmt: skip
    own, cores = ctx.layer(GatedMlp)("mlp", 8, 12, ctx), GatedMlp("mlp", 8, 12, ctx)
    assert isinstance(own, PaperMlp)
    generator = torch.Generator().manual_seed(0)
    for mine, theirs in zip(own.parameters(), cores.parameters(), strict=True):
        mine.data.copy_(torch.randn(mine.shape, generator=generator))
        theirs.data.copy_(mine)
    for layer in (own, cores):
        layer.gate_up_proj.finish()
        layer.down_proj.finish()
    x = torch.randn(3 * PaperMlp.strip + 5, 8, generator=generator)
    torch.testing.assert_close(own(x), cores(x))
