"""Keys that decodes have in common, read once: finding them, the two calls, joining, recorded steps."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from fake_fa3 import CALLS
from recorded_steps import RecordedSteps
from test_fa3_recorded import graphs_of, world_of

from core.testing.contracts.attention_world import Rule, World
from core.testing.contracts.base import relative_error
from plugin_fa3 import merge, prefix
from plugin_fa3.prefix import common_pages

Merge = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


@pytest.mark.parametrize(
    ("table", "lens", "members", "pages"),
    [
        ([[1, 2, 3], [1, 2, 4]], [40, 40], [True, True], 2),
        ([[1, 2, 3], [1, 2, 3]], [40, 33], [True, True], 2),  # the last page is whole for one and begun for the other
        ([[1, 2, 3], [1, 2, 3]], [48, 32], [True, True], 1),  # each keeps a token of its own
        ([[1, 2, 3], [4, 5, 6]], [40, 40], [True, False], 0),
        ([[7, 8, 0], [1, 2, 3], [1, 5, 6], [1, 2, 9]], [20, 40, 40, 40], [False, True, True, True], 1),
        ([[0], [0], [0]], [1, 1, 1], [True, True, True], 0),  # padding rows on the null page
    ],
)
def test_the_pages_that_most_rows_begin_with(
    table: list[list[int]], lens: list[int], members: list[bool], pages: int
) -> None:
    found, count = common_pages(np.array(table, np.int32), np.array(lens, np.int32), 16)
    assert count == pages
    if pages:
        assert found.tolist() == members


@pytest.fixture
def any_saving_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "_WORTH_BYTES", 1)


def _family(world: World, parent: int, count: int, pages: int) -> list[int]:
    return [world.fork(parent, pages) for _ in range(count)]


def _common_calls() -> int:
    return sum(call.operator == "fwd" and not call.values["is_causal"] for call in CALLS)


def _check(outcomes: list[object]) -> None:
    for outcome in outcomes:
        assert relative_error(outcome.got[: len(outcome.want)], outcome.want) < 0.02  # type: ignore[attr-defined]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("num_splits", [0, 1])
def test_shared_and_other_decodes_beside_prefills(device: str, num_splits: int, any_saving_is_worth_it: None) -> None:
    world = world_of(device, {"num_splits": num_splits}, Rule(softcap=15.0), Rule(scale=0.2))
    first, other = world.new(2)
    _check(world.step([(first, 16 * 9), (other, 50)]))
    family = _family(world, first, 5, 8)
    _check(world.step([(number, 3 + number) for number in family]))
    CALLS.clear()
    for _ in range(3):
        _check(world.step([*((number, 1) for number in family), (other, 1)]))
        (new,) = world.new()
        _check(world.step([(other, 1), *((number, 1) for number in family), (new, 21)], padding_rows=2))
    assert device == "cuda" or _common_calls() == 12
    _check(world.step([(other, 1), (family[0], 1)]))
    assert device == "cuda" or _common_calls() == 12  # nothing in common: one call


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_recorded_steps_with_and_without_common_keys(device: str, any_saving_is_worth_it: None) -> None:
    world = world_of(device, {}, Rule(), Rule(scale=0.2))
    recorded = RecordedSteps(world, graphs_of(device, (16,)), 16, max_pages=40)
    parents = world.new(2)
    _check(world.step([(parents[0], 16 * 7), (parents[1], 16 * 3 + 5)]))
    families = [_family(world, parents[0], 9, 6), _family(world, parents[1], 4, 3)]
    for family in families:
        _check(world.step([(number, 2 + number % 5) for number in family]))
    alone = world.new(5)
    _check(world.step([(number, 9) for number in alone]))
    CALLS.clear()
    _check(recorded.step(alone))
    assert recorded.recorded == [0]
    assert device == "cuda" or _common_calls() == 0
    _check(recorded.step([*families[0], *alone]))
    assert recorded.recorded == [0, 1]
    assert device == "cuda" or _common_calls() == 6  # of two layers: run, recorded, replayed
    _check(recorded.step(alone))
    _check(recorded.step([alone[0], *families[1]]))
    _check(recorded.step([*families[1], *families[0]]))
    _check(recorded.step([families[0][0]]))
    _check(recorded.step(families[0]))
    assert recorded.recorded == [0, 1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_steps_are_recorded_in_inference_mode(device: str, any_saving_is_worth_it: None) -> None:
    """As the engine does it. What is planned later in that mode or outside of it goes to the same addresses."""
    world = world_of(device, {}, Rule())
    with torch.inference_mode():
        recorded = RecordedSteps(world, graphs_of(device, (16,)), 16, max_pages=40)
        (parent,) = world.new()
        _check(world.step([(parent, 16 * 7)]))
        family = _family(world, parent, 4, 6)
        _check(world.step([(number, 2) for number in family]))
        _check(recorded.step(family))
        _check(recorded.step([parent]))
        _check(world.step([(number, 1) for number in family]))
    layout = world.layout_again([(number, 1) for number in family])
    world.backend.plan(layout)
    world.backend.plan(recorded.layout)


@pytest.mark.parametrize("rule", [Rule(window=40), Rule(has_sinks=True)])
def test_windows_and_sinks_go_without(rule: Rule, any_saving_is_worth_it: None) -> None:
    world = world_of("cpu", {}, rule)
    (parent,) = world.new()
    _check(world.step([(parent, 100)]))
    family = _family(world, parent, 4, 5)
    CALLS.clear()
    _check(world.step([(number, 2) for number in family]))
    _check(world.step([(number, 1) for number in family]))
    assert _common_calls() == 0


def test_it_can_be_switched_off_and_small_savings_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, worth in (({"shared_prefixes": False}, 1), ({}, 1 << 40)):
        monkeypatch.setattr(prefix, "_WORTH_BYTES", worth)
        world = world_of("cpu", settings, Rule())
        (parent,) = world.new()
        _check(world.step([(parent, 100)]))
        family = _family(world, parent, 4, 5)
        _check(world.step([(number, 2) for number in family]))
        CALLS.clear()
        _check(world.step([(number, 1) for number in family]))
        assert _common_calls() == 0


@pytest.fixture(params=["plain", "triton"])
def join(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Merge]:
    if request.param == "plain":
        yield merge.merge_into
        return
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read where a kernel is defined
    sys.modules.pop("plugin_fa3.merge_triton", None)
    yield importlib.import_module("plugin_fa3.merge_triton").merge
    sys.modules.pop("plugin_fa3.merge_triton", None)


@pytest.mark.parametrize(("heads", "dim"), [(4, 64), (6, 80), (1, 128)])
def test_joined_parts_equal_attention_over_all_keys(join: Merge, heads: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    scores = torch.randn(5, heads, 30, generator=generator, dtype=torch.float64) * 3
    values = torch.randn(30, heads, dim, generator=generator, dtype=torch.float64)

    def attend(keys: slice) -> tuple[torch.Tensor, torch.Tensor]:
        part = scores[:, :, keys]
        return torch.einsum("thl,lhd->thd", part.softmax(-1), values[keys]), part.logsumexp(-1).t().contiguous()

    (common, common_lse), (own, own_lse), (whole, _) = attend(slice(12)), attend(slice(12, 30)), attend(slice(30))
    wide_lse = torch.full((heads, 9), float("nan"))
    wide_lse[:, :5] = own_lse
    skipped = torch.tensor([12, 0, 12, 12, 0], dtype=torch.int32)
    out = own.float().contiguous()
    no_keys = torch.full_like(common_lse, float("-inf")).float()
    join(out, wide_lse[:, :5], common.float().contiguous(), common_lse.float(), skipped)
    want = torch.where((skipped > 0)[:, None, None], whole, own)
    assert relative_error(out, want) < 1e-5
    before = out.clone()
    join(out, wide_lse[:, :5], torch.zeros_like(out), no_keys, torch.zeros_like(skipped))
    assert torch.equal(out, before)
