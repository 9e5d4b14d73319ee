"""Long sequences: splits that are merged, prefixes that rows share, rows that verify drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from core.interfaces.attention import KV_DTYPES
from core.interfaces.context import PluginContext
from core.interfaces.spec import StateKind
from core.testing.contracts.attention_world import Rule, Shape, World
from core.testing.contracts.base import DEFAULT_TOLERANCE, relative_error
from plugin_triton.attention import backend as backends
from plugin_triton.attention.backend import TritonAttention
from plugin_triton.attention.tiles import Device

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLAIN = Shape(page_size=16, num_pages=200)
EIGHT_BITS = replace(PLAIN, kv_dtype=getattr(torch, KV_DTYPES["fp8_e4m3"]), kv_scales=(0.37, 0.029))
LATENT = replace(PLAIN, kind=StateKind.MLA_LATENT, latent_dim=32, rope_dim=8, v_head_dim=16)


@pytest.fixture(autouse=True)
def many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits get short where a device has many processors."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(Device, "of", lambda device: Device(132, 227 << 10, wide=True))


def make_world(shape: Shape) -> World:
    config = shape.config(DEVICE)
    backend = TritonAttention(config, PluginContext(device=DEVICE))
    kv = backend.allocate()
    for buffer in (buffer for buffers in kv.values() for buffer in buffers):
        buffer.view(torch.uint8).fill_(0xFF)  # not-a-number
    return World(backend, config, kv)


def grown(world: World, lengths: Sequence[int], number: int | None = None) -> list[int]:
    """Sequences of so many tokens, written to the cache without attending. number: lengthen this one instead."""
    numbers = [number] if number is not None else world.new(len(lengths))
    for which, length in zip(numbers, lengths, strict=True):
        layout = world.layout([(which, length)])
        for layer in world.config.layers:
            inputs = world.inputs(layer, length)
            world.backend.plan(layout)
            *_, first, second = inputs
            launcher = world.backend._launchers[layer]  # type: ignore[attr-defined]
            kv = world.kv[layer]
            if world.latent:
                first, second = first.unsqueeze(1), second.unsqueeze(1)
            launcher.store(first, second, layout.slot_mapping, backends.Cached(kv[0], kv[-1]), 0, length)
            story = world.stories[which]
            old = story.kept.get(layer)
            new = tuple(world._cached(x, layer, i) for i, x in enumerate(inputs[-2:]))
            story.kept[layer] = new if old is None else (torch.cat((old[0], new[0])), torch.cat((old[1], new[1])))  # type: ignore[assignment]
    return numbers


def check(world: World, work: Sequence[tuple[int, int]], **how: object) -> None:
    for outcome in world.step(work, **how):  # type: ignore[arg-type]
        name = str(world.config.dtype).removeprefix("torch.")
        error = relative_error(outcome.got[: len(outcome.want)], outcome.want)
        assert error < DEFAULT_TOLERANCE[name], error


LENGTHS = [400, 1, 128, 129]


@pytest.mark.parametrize(
    "shape",
    [
        PLAIN,
        replace(PLAIN, num_heads=7, num_kv_heads=1, head_dim=20, dtype=torch.bfloat16),
        PLAIN.with_rule(softcap=5.0, has_sinks=True, scale=1.0),
        replace(PLAIN, kind=StateKind.SLIDING_WINDOW).with_rule(window=290),
        EIGHT_BITS,
        LATENT,
    ],
    ids=["plain", "one_kv_head", "softcap_sinks", "window", "eight_bits", "latent"],
)
def test_splits_are_merged(shape: Shape) -> None:
    world = make_world(shape)
    numbers = grown(world, LENGTHS)
    for _ in range(2):  # counters are zero again after the first
        check(world, [(n, 1) for n in numbers])
    check(world, [(n, 1) for n in numbers[::-1]], padding_rows=3)


@pytest.mark.parametrize("shape", [PLAIN, LATENT], ids=["plain", "latent"])
def test_a_few_tokens_after_a_long_history(shape: Shape) -> None:
    """Drafts that are verified: decode rows with more than one token."""
    world = make_world(shape)
    numbers = grown(world, LENGTHS)
    check(world, [(n, 5 if n % 2 else 3) for n in numbers])
    check(world, [(numbers[0], 1), (numbers[1], 16), (numbers[2], 17), (numbers[3], 2)])


def test_rows_share_prefixes() -> None:
    """Two families of rows, some with pages of their own only, and a prefix that ends within a page's block."""
    for shape in (PLAIN, EIGHT_BITS, LATENT, replace(LATENT, kv_dtype=EIGHT_BITS.kv_dtype, kv_scales=(0.041, 1.0))):
        world = make_world(replace(shape, num_heads=2, num_kv_heads=1))
        first, second, alone = grown(world, [420, 300, 330])
        family = [world.fork(first, 26) for _ in range(9)]  # 416 tokens: 384 are read once
        others = [world.fork(second, 17) for _ in range(8)]  # 272 tokens: 256
        rows = [number for pair in zip(family, others, strict=False) for number in pair]
        rows += [family[-1], alone]
        for turn in range(2):
            check(world, [(n, 1) for n in rows])
            shared = world.backend._step.shared  # type: ignore[attr-defined]
            lens = shared.shared_lens.tolist()
            assert lens == [384, 256] * 8 + [384, 0], turn
        # A row fewer, in another order: what was shared is found again.
        check(world, [(n, 1) for n in rows[::-1][1:]])


def test_nothing_in_common_any_more() -> None:
    """The numbers of an earlier step's prefixes are gone from the device."""
    world = make_world(PLAIN)
    (parent,) = grown(world, [300])
    family = [world.fork(parent, 17) for _ in range(8)]
    check(world, [(n, 1) for n in family])
    loners = grown(world, [20 + n for n in range(8)])
    check(world, [(n, 1) for n in loners])
    assert not world.backend._step.shared.shared_lens.any()  # type: ignore[attr-defined]
    check(world, [(n, 1) for n in family])


def test_layers_of_other_rules_share_too() -> None:
    world = make_world(replace(PLAIN, rules=(Rule(), Rule(softcap=3.0, has_sinks=True))))
    (parent,) = grown(world, [300])
    family = [world.fork(parent, 17) for _ in range(8)]
    check(world, [(n, 1) for n in family])
