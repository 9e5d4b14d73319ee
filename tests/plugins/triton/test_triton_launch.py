"""Launches past Triton's look-up start what Triton's own would: the same compiled kernel with the same arguments.

Triton's binder, launcher and the expansion of tensor descriptors are the real ones; the driver is left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from test_triton_ops_compile import CALLS, MODULES
from triton.tools.tensor_descriptor import TensorDescriptor

from bench import without_device
from core.interfaces.context import PluginContext
from core.interfaces.moe import ExpertWeights
from plugin_triton import dependent
from plugin_triton.launch import Launch
from plugin_triton.moe import grouped, sorting
from plugin_triton.moe.configs import MoeConfig, Tile
from plugin_triton.moe.runner import compute
from plugin_triton.ops import configs, linear, norm, rope
from plugin_triton.ops.configs import Config
from plugin_triton.ops.table import TritonOps


@triton.jit(do_not_specialize=["free", "free_pointer"], do_not_specialize_on_alignment=["loose", "loose_pointer"])
def everything(  # type: ignore[no-untyped-def]
    pointer, free_pointer, loose_pointer, maybe, number, free, loose, real, A: triton.language.constexpr,  # noqa: N803
    B: triton.language.constexpr,  # noqa: N803
):  # fmt: skip
    return


# How five rows of the operations' test products are multiplied.
SKINNY = {
    "1024x4096": {8: Config("skinny", 64, 128, 4, 4, 4, 2)},
    "512x4096 gated": {8: Config("skinny", 64, 64, 4, 2, 3, 1)},
}


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[without_device.Checked]:
    """Every launch is compared."""

    def clear() -> None:
        for module in (*MODULES, configs, dependent, grouped, sorting):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()

    found = without_device.Checked()
    clear()
    monkeypatch.setattr(configs, "_measured", lambda device: SKINNY)
    with without_device.installed(found.entry), found.comparing():
        yield found
    clear()


# Sizes that Triton tells apart: 1, multiples of 16, others; of 32 and of more bits.
NUMBERS = st.sampled_from((0, 1, 2, 15, 16, 17, 31, 32, 4096, 2**31 - 1, 2**31 - 16, 2**31, 2**33 + 1, 2**40, -1, -16))
# Elements of two bytes from an aligned address on.
OFFSETS = st.sampled_from((0, 0, 0, 1, 4, 8, 16))
CALL = st.tuples(OFFSETS, OFFSETS, OFFSETS, NUMBERS, NUMBERS, NUMBERS, st.sampled_from((0.0, 1.0, 0.5)))
MEMORY = torch.zeros(64, dtype=torch.bfloat16)


@settings(max_examples=150, deadline=None)
@given(st.lists(CALL, min_size=2, max_size=12), st.booleans())
def test_any_calls(calls: list[tuple[Any, ...]], with_maybe: bool) -> None:
    """One Launch, called with arguments of all kinds in any order."""
    assert MEMORY.data_ptr() % 16 == 0
    found = without_device.Checked()
    with without_device.installed(found.entry), found.comparing():
        launch = Launch(everything, (3, "x"), num_warps=2)
        for first, free, loose, *numbers in (*calls, *calls):
            pointers = (MEMORY[first:], MEMORY[free:], MEMORY[loose:])
            launch.start(without_device.NUMBER, 5, 1, 1, *pointers, MEMORY if with_maybe else None, *numbers)


def test_calls_that_are_alike_go_past_triton(checked: without_device.Checked) -> None:
    """What differs in nothing that Triton compiles for is no other kind of call."""
    launch = Launch(everything, (3, "x"))
    launch.start(0, 1, 1, 1, MEMORY, MEMORY, MEMORY, None, 16, 7, 3, 0.5)
    first = launch.start
    for free, loose, number in ((1, 5, 32), (0, 2, 48), (100, 3, 2**20)):
        launch.start(0, 9, 2, 1, MEMORY[16:], MEMORY[1:], MEMORY[3:], None, number, free, loose, -1.0)
    assert launch.start is first
    assert checked.compared == 3


def test_no_more_than_a_few_kinds_are_kept(checked: without_device.Checked) -> None:
    launch = Launch(everything, (3, "x"))
    for number in (1, 2, 16):
        for loose in (1, 2):
            launch.start(0, 1, 1, 1, MEMORY, MEMORY, MEMORY, None, number, 7, loose, 0.5)
    kept = launch.start
    for _ in range(2):
        launch.start(0, 1, 1, 1, MEMORY, MEMORY, MEMORY, None, 16, 7, 2, 0.5)
    assert launch.start is kept


@triton.jit
def described(tiles, y, SIZE: triton.language.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    return


def test_descriptors(checked: without_device.Checked) -> None:
    """One is made ready for the driver once; another is not taken for it."""
    first, second = (TensorDescriptor.from_tensor(torch.zeros(64, 64).bfloat16(), [16, 16]) for _ in range(2))
    launch = Launch(described, (4,), pdl=True)
    for one in (first, first, second, second, first):
        launch.start(0, 1, 1, 1, one, MEMORY)
    assert checked.compared >= 3


@pytest.mark.parametrize("group", CALLS)
def test_operations(group: str, checked: without_device.Checked) -> None:
    for call in CALLS[group](TritonOps(PluginContext()).ops()):
        before = checked.compared
        for _ in range(3):
            call()
        assert checked.compared >= before + 2


def test_rows_that_are_not_aligned(checked: without_device.Checked) -> None:
    """In turns with others, in operations that are given the same sizes and types."""
    wide, weight = torch.zeros(20, 4104).bfloat16(), torch.ones(4096).bfloat16()
    bound = linear.BoundLinear(torch.zeros(64, 4096).bfloat16())
    heads = rope.BoundRope((4, 2, 2), None, None, 0.0, torch.zeros(64, 64))
    for first in (0, 8, 1, 2, 0, 3, 8, 4):
        x = wide[:, first : first + 4096]
        norm.add_rms_norm(x, x, weight, 1e-6)
        norm.rms_norm(x, weight, 1e-6)
        bound(x[:1])
        heads(wide[:, first : first + 512].view(20, 8, 64), torch.zeros(20, dtype=torch.int64))
    assert checked.compared > 20


@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize("tokens", [3, 200])
def test_experts(tokens: int, tma: bool, checked: without_device.Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 1024 pairs are sorted by one kernel, more by two."""
    monkeypatch.setattr(grouped.chain, "dependent", without_device.always)
    weights = ExpertWeights(torch.zeros(8, 128, 64).bfloat16(), torch.zeros(8, 64, 64).bfloat16())
    x, ids, factors = torch.zeros(tokens, 64).bfloat16(), torch.zeros(tokens, 6, dtype=torch.int64), torch.zeros(1)
    for config in (MoeConfig(16, Tile(32, 64, tma=tma), Tile(32, 64, tma=tma)), MoeConfig(1, Tile(2, 64), Tile(4, 64))):
        for _ in range(3):
            compute(x, weights, ids, factors.expand(tokens, 6), config)
    assert checked.compared >= 4
