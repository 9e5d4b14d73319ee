"""Attention for deterministic mode: the contract, and equal bits however a sequence is cut into steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import test_triton_attention as usual
import torch

from core.interfaces.context import PluginContext
from core.interfaces.spec import StateKind
from core.testing.contracts.attention_world import Shape, World
from plugin_triton.attention.invariant import TritonInvariantAttention
from plugin_triton.attention.tiles import Device

DEVICE = torch.device("cuda" if usual.ON_GPU else "cpu")
LENGTH = 150  # tokens of the sequence that is looked at
CHUNKS = ((5, 18, 1, 64, 1, 1, 60), (1, 77, 8, 64), (149, 1))


class Anywhere(TritonInvariantAttention):
    """The interpreter runs kernels on the CPU."""

    capabilities = replace(TritonInvariantAttention.capabilities, hardware=None)


class TestTritonInvariant(usual.TestTritonAttention):
    name = "triton_invariant"
    implementation = Anywhere

    def head_dims(self) -> tuple[int, ...]:
        return (64, 80, 128) if usual.ON_GPU else usual.SIZES["head_dims"][1:]


@pytest.fixture(autouse=True)
def many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":
        monkeypatch.setattr(Device, "of", lambda device: Device(132, 227 << 10, wide=True))


def make_world(shape: Shape) -> World:
    config = shape.config(DEVICE)
    backend = TritonInvariantAttention(config, PluginContext(device=DEVICE))
    return World(backend, config, backend.allocate())


PLAIN = Shape(page_size=16, num_pages=120)


@pytest.mark.parametrize(
    "shape",
    [
        PLAIN,
        replace(PLAIN, num_heads=8, num_kv_heads=2, head_dim=128, dtype=torch.bfloat16),
        replace(PLAIN, kind=StateKind.SLIDING_WINDOW, dtype=torch.bfloat16).with_rule(window=70),
        PLAIN.with_rule(softcap=5.0, has_sinks=True, scale=1.0),
    ],
    ids=["float32", "bfloat16", "window", "cap_and_sinks"],
)
def test_bits_do_not_depend_on_how_a_sequence_is_cut(shape: Shape) -> None:
    """In one piece, in chunks beside others, and token by token."""
    rng, found = np.random.default_rng(3), []
    for chunks in ((LENGTH,), *CHUNKS):
        assert sum(chunks) == LENGTH
        world = make_world(shape)
        (layer,) = world.config.layers
        (mine,) = world.new()
        inputs = world.inputs(layer, LENGTH)  # the first random numbers of every world: the same
        rows, at = [], 0
        for chunk in chunks:
            alone = len(chunks) == 1
            before = [] if alone else [(number, 1) for number in world.new(int(rng.integers(0, 4)))]
            behind = [] if alone else [(number, int(rng.integers(2, 30))) for number in world.new(2)]
            layout = world.layout([*before, (mine, chunk), *behind])
            others = world.inputs(layer, layout.num_tokens)
            start = len(before)
            for other, own in zip(others, inputs, strict=True):
                other[start : start + chunk] = own[at : at + chunk]
            world.backend.plan(layout)
            rows.append(world.run(layer, others)[start : start + chunk].clone())
            at += chunk
        found.append(torch.cat(rows))
    for other in found[1:]:
        assert torch.equal(other.view(torch.uint8), found[0].view(torch.uint8))
