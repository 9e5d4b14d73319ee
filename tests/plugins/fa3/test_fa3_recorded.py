"""Recorded decode steps: on the CPU with stand-in kernels and a recorder of tensor operations, on a GPU for real."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from fa3_backends import LATENTS, OnCpu
from recorded_steps import CudaGraphs, RecordedSteps

from core.interfaces.context import PluginContext
from core.interfaces.hardware import StepGraphs
from core.interfaces.spec import StateKind
from core.testing.contracts.attention_world import Rule, Shape, World
from core.testing.contracts.base import relative_error
from core.testing.mock_graphs import MockGraphs
from plugin_fa3.backend import Fa3Attention
from plugin_fa3.settings import Settings

SIZES = (1, 4, 8)


def world_of(device: str, settings: Mapping[str, Any], *rules: Rule) -> World:
    windows = all(rule.window is not None for rule in rules)
    shape = Shape(
        kind=StateKind.SLIDING_WINDOW if windows else StateKind.FULL,
        num_heads=8, num_kv_heads=2, head_dim=128, page_size=16, num_pages=200, dtype=torch.bfloat16, rules=rules,
    )  # fmt: skip
    return world_for(device, settings, shape)


def world_for(device: str, settings: Mapping[str, Any], shape: Shape) -> World:
    """device: "cpu" with stand-in kernels, "cuda" with the real ones, skipped where there are none."""
    lacks = Fa3Attention.unavailable()
    if device == "cuda" and lacks is not None:
        pytest.skip(lacks)
    config = shape.config(torch.device(device))
    backend = (Fa3Attention if device == "cuda" else OnCpu)(config, PluginContext(settings=Settings(**settings)))
    kv = backend.allocate()
    for buffers in kv.values():
        for buffer in buffers:
            buffer.fill_(float("nan"))
    return World(backend, config, kv)


def graphs_of(device: str, sizes: tuple[int, ...] = SIZES) -> StepGraphs:
    return CudaGraphs() if device == "cuda" else MockGraphs(sizes)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("num_splits", [0, 1, 5])
@pytest.mark.parametrize("window", [None, 40])
def test_replayed_steps_equal_the_reference(device: str, num_splits: int, window: int | None) -> None:
    """Growing sequences, in other rows, fewer than recorded; and steps between them that are not recorded."""
    world = world_of(device, {"num_splits": num_splits}, Rule(window=window), Rule(window=window, scale=0.2))
    graphs = graphs_of(device)
    recorded = {size: RecordedSteps(world, graphs, size, max_pages=40) for size in reversed(SIZES)}
    lengths = (3, 500, 16, 31, 300, 1, 64)
    numbers = world.new(len(lengths))
    for outcome in world.step(list(zip(numbers, lengths, strict=True))):
        assert relative_error(outcome.got, outcome.want) < 0.02
    steps = [(1, [1]), (8, numbers), (4, [6, 1, 0]), (4, [2, 3, 4, 5]), (1, [1]), (8, numbers[::-1]), (8, [4])]
    for size, rows in steps:
        for outcome in recorded[size].step(rows):
            assert relative_error(outcome.got, outcome.want) < 0.02, (size, rows, outcome.layer)
    for outcome in world.step([(0, 1), (5, 1), (1, 7)]):
        assert relative_error(outcome.got, outcome.want) < 0.02
    for outcome in recorded[8].step(numbers):
        assert relative_error(outcome.got, outcome.want) < 0.02


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("sizes", LATENTS[:2], ids=str)
def test_replayed_steps_over_latents_equal_the_reference(device: str, sizes: tuple[int, int, int, int]) -> None:
    latent, rope, nope, value = sizes
    shape = Shape(
        kind=StateKind.MLA_LATENT, num_heads=8, num_kv_heads=1, latent_dim=latent, rope_dim=rope, head_dim=nope,
        v_head_dim=value, page_size=16, num_pages=200, dtype=torch.bfloat16,
    )  # fmt: skip
    world = world_for(device, {}, shape)
    recorded = RecordedSteps(world, graphs_of(device), 8, max_pages=40)
    numbers = world.new(6)
    for work in ([(number, 1 + 37 * number) for number in numbers], [(numbers[0], 1), (numbers[1], 5)]):
        for outcome in world.step(work):
            assert relative_error(outcome.got, outcome.want) < 0.02
    for rows in (numbers, numbers[2:], numbers[:1], numbers[::-1]):
        for outcome in recorded.step(rows):
            assert relative_error(outcome.got, outcome.want) < 0.02


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_long_prompt_that_a_fused_operation_has_stored(device: str) -> None:
    """Its keys are read back from the pages. It stands between others, in a step with padding rows."""
    world = world_of(device, {}, Rule())
    numbers = world.new(3)
    for work in ([(numbers[0], 20)], [(numbers[0], 1), (numbers[1], 1700), (numbers[2], 30)]):
        for outcome in world.step(work, twice=True, padding_rows=3):
            assert relative_error(outcome.got[: len(outcome.want)], outcome.want) < 0.02


def test_others_may_store_where_nothing_starts_in_a_step() -> None:
    """What is written to the rows is what is attended to; prompts from their first token on want their own keys."""
    world = world_of("cpu", {}, Rule())
    numbers = world.new(3)
    (layer,) = world.config.layers
    for outcome in world.step([(number, 20 + number) for number in numbers[:2]]):
        assert world.backend.token_rows(world.kv[layer]) is None
        assert relative_error(outcome.got, outcome.want) < 0.02
    work = [(numbers[0], 1), (numbers[1], 4)]
    layout = world.layout(work)
    inputs = world.inputs(layer, layout.num_tokens)
    world.backend.plan(layout)
    rows = world.backend.token_rows(world.kv[layer])
    assert rows is not None
    for place, new in zip(rows[:2], inputs[1:], strict=True):
        place.index_copy_(0, rows[2].long(), new)
    got = world.run(layer, inputs, stored=True)
    assert relative_error(got, world.remember(layer, work, inputs)) < 0.02


def test_a_replay_makes_the_calls_of_the_recording() -> None:
    """Launch shapes depend on rows and configuration alone: the width of the table, the bound of parts."""
    from fake_fa3 import CALLS

    world = world_of("cpu", {}, Rule())
    recorded = RecordedSteps(world, MockGraphs(SIZES), 4, max_pages=40)
    numbers = world.new(3)
    for _ in world.step([(number, 100) for number in numbers]):
        pass
    seen = []
    for rows in ([0], [0, 1, 2], [1, 2]):
        CALLS.clear()
        recorded.step(rows)
        seen.append(
            [(c.operator, c.values["num_splits"], c.values["max_seqlen_k"], c.values["max_seqlen_q"]) for c in CALLS]
        )
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][-1][0] == "fwd"
    assert replace(recorded.layout).captured
