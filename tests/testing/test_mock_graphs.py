"""The mock of recorded steps keeps what a graph on a device keeps, and no more: addresses and operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core.interfaces.hardware import Between
from core.testing.graph_memory import GraphMemory, unowned
from core.testing.mock_graphs import MockGraphs


def test_a_replay_reads_its_inputs_in_place_and_runs_no_code() -> None:
    mock = MockGraphs((1,))
    x, calls = torch.ones(3), []
    factors = torch.arange(2.0)

    def run() -> tuple[torch.Tensor, ...]:
        calls.append(1)
        y = x.view(3, 1) * factors
        y.add_(1)
        return (y.sum(0),)

    mock.capture(1, run)
    assert len(calls) == 2, "once to have it run, once to record it"
    x.fill_(2)
    assert mock.replay(1)[0].tolist() == [3, 9]
    x.fill_(-1)
    assert mock.replay(1)[0].tolist() == [3, 0]
    assert len(calls) == 2


@pytest.mark.parametrize("look", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero()])
def test_looking_at_values_while_recording_is_an_error(look: Any) -> None:
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="looks at values"):
        MockGraphs((1,)).capture(1, lambda: (look(x),))


def test_what_python_decided_is_frozen() -> None:
    mock, x, add = MockGraphs((1,)), torch.ones(2), [5]
    mock.capture(1, lambda: (x + add[0],))
    add[0] = 7
    assert mock.replay(1)[0].tolist() == [6, 6]


def test_recording_computes_nothing() -> None:
    mock, x, total = MockGraphs((), (2,)), torch.ones(2), torch.zeros(2)

    def run(between: Between) -> torch.Tensor:
        total.add_(x)
        return total * 2

    mock.capture_pieces(2, run)
    assert total.tolist() == [0, 0]
    assert mock.replay_pieces(2).tolist() == [2, 2]
    assert total.tolist() == [1, 1]


def test_results_are_rubbish_from_the_next_replay_on() -> None:
    mock, x = MockGraphs((1, 2)), torch.ones(4)
    for size in (2, 1):
        mock.capture(size, lambda size=size: (x[:size] * 3,))
    (first,) = mock.replay(2)
    kept = first.clone()
    mock.replay(1)
    assert kept.tolist() == [3, 3]
    assert first.isnan().any()


def test_memory_that_was_given_back_is_used_again() -> None:
    """Within a recording and by the next one: nothing that is read after its tensor is gone is right."""
    mock, x = MockGraphs((), (2,)), torch.ones(2)
    stolen: list[torch.Tensor] = []

    def run(between: Between) -> torch.Tensor:
        early = x + 1
        stolen.append(unowned(early))
        del early
        return (x + 2) * 3  # one of both lies where `early` was

    mock.capture_pieces(2, run)
    assert mock.replay_pieces(2).tolist() == [9, 9]
    assert stolen[0].tolist() in ([3, 3], [9, 9])
    size = mock.memory.num_bytes
    for _ in range(20):
        mock.capture_pieces(2, run)
    assert mock.memory.num_bytes == size


def test_between_two_pieces_tensors_are_where_they_were_given() -> None:
    mock, x, seen = MockGraphs((), (2,)), torch.ones(2, 4), []

    def call(result: torch.Tensor, part: torch.Tensor) -> None:
        seen.append(part.stride())
        result.copy_(part * 10)

    def run(between: Between) -> torch.Tensor:
        part = (x + 1)[:, 1:3]  # strided
        result = part.new_empty(part.shape)
        between(call, result, part)
        del part
        return result + torch.zeros_like(result)

    mock.capture_pieces(2, run)
    assert seen == [], "recording calls nothing"
    x.fill_(2)
    assert mock.replay_pieces(2).tolist() == [[30, 30], [30, 30]]
    assert seen == [(4, 1)]


def test_memory_of_others_has_to_stay() -> None:
    mock, x = MockGraphs((1,)), torch.ones(2)
    made = [torch.ones(2)]
    mock.capture(1, lambda: (x + made[0],))
    assert mock.replay(1)[0].tolist() == [2, 2]
    made.clear()
    with pytest.raises(RuntimeError, match="memory that was given back"):
        mock.replay(1)


def test_a_failed_recording_leaves_the_mock_usable() -> None:
    mock, x = MockGraphs((1,)), torch.ones(2)
    with pytest.raises(ZeroDivisionError):
        mock.capture(1, lambda: (x + 1 // 0,))
    mock.capture(1, lambda: (x + 1,))
    assert mock.replay(1)[0].tolist() == [2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_spoiled_memory_shows(dtype: torch.dtype) -> None:
    memory = GraphMemory()
    held = memory.adopt(torch.ones(3, 5, dtype=dtype).t())
    assert held.stride() == (1, 5)
    assert memory.holds(held)
    assert held.float().eq(1).all()
    memory.spoil()
    assert held.float().isnan().all()
