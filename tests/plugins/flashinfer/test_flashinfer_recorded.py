"""Recorded decode steps: on the CPU with a stand-in and a recorder of tensor operations, on a GPU for real."""

from __future__ import annotations

import pytest
import torch
from fake_flashinfer import FakeWrapper
from recorded_steps import CudaGraphs, RecordedSteps
from test_flashinfer_contract import OnCpu

from core.interfaces.context import PluginContext
from core.interfaces.hardware import StepGraphs
from core.interfaces.spec import StateKind
from core.testing.contracts.attention_world import Rule, Shape, World
from core.testing.contracts.base import relative_error
from core.testing.mock_graphs import MockGraphs
from plugin_flashinfer.backend import FlashInferAttention
from plugin_flashinfer.settings import Settings

SIZES = (1, 4, 8)


def _world(device: str, *rules: Rule) -> World:
    lacks = FlashInferAttention.unavailable() or (None if torch.cuda.is_available() else "there is no GPU")
    if device == "cuda" and lacks is not None:
        pytest.skip(lacks)
    windows = all(rule.window is not None for rule in rules)
    shape = Shape(
        kind=StateKind.SLIDING_WINDOW if windows else StateKind.FULL,
        num_heads=8, num_kv_heads=2, head_dim=128, page_size=16, num_pages=200, dtype=torch.bfloat16, rules=rules,
    )  # fmt: skip
    backend_class = FlashInferAttention if device == "cuda" else OnCpu
    context = PluginContext(settings=Settings(workspace_mib=64))
    backend = backend_class(shape.config(torch.device(device)), context)
    kv = backend.allocate()
    for buffers in kv.values():
        for buffer in buffers:
            buffer.fill_(float("nan"))
    return World(backend, backend.config, kv)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("window", [None, 40])
def test_replayed_steps_equal_the_reference(device: str, window: int | None) -> None:
    """Growing sequences, in other rows, fewer than recorded; and steps between them that are not recorded."""
    world = _world(device, Rule(window=window), Rule(window=window, scale=0.2))
    graphs: StepGraphs = CudaGraphs() if device == "cuda" else MockGraphs(SIZES)
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
def test_steps_are_recorded_in_inference_mode(device: str) -> None:
    """As the engine does it. What is planned later in that mode or outside of it goes to the same addresses."""
    world = _world(device, Rule())
    with torch.inference_mode():
        recorded = RecordedSteps(world, CudaGraphs() if device == "cuda" else MockGraphs(SIZES), 4, max_pages=40)
        numbers = world.new(3)
        for outcome in [*world.step([(number, 20) for number in numbers]), *recorded.step(numbers)]:
            assert relative_error(outcome.got, outcome.want) < 0.02
    world.backend.plan(world.layout_again([(number, 1) for number in numbers]))
    world.backend.plan(recorded.layout)


def test_layers_that_share_a_rule_share_a_plan() -> None:
    """The scale of a layer is given with the call; window and soft cap are planned."""
    FakeWrapper.made.clear()
    world = _world("cpu", Rule(), Rule(scale=0.3), Rule(softcap=20.0))
    world.new(2)
    for outcome in world.step([(0, 20), (1, 3)]):
        assert relative_error(outcome.got, outcome.want) < 0.02
    assert [wrapper.plans for wrapper in FakeWrapper.made] == [1, 1]
    for outcome in world.step([(0, 1), (1, 5)]):
        assert relative_error(outcome.got, outcome.want) < 0.02
    assert len(FakeWrapper.made) == 4  # decodes and prefills, each with and without a soft cap
