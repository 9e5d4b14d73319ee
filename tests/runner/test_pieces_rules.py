"""Recording in pieces: which sizes there may be, what is recorded, and what happens where that goes wrong, on one rank
or on one of several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.errors import EngineError, PluginError
from core.runner.agreement import Agreement
from core.runner.runner import ModelRunner
from core.testing.capturable_attention import CapturableAttention
from core.testing.contracts.hardware_steps import decode_all
from core.testing.contracts.model_driver import ThreadRank, run_ranks
from core.testing.mock_graphs import MockGraphHardware, MockGraphs
from core.testing.mock_model import MockConfig, reference_greedy
from core.testing.mock_runner import SingleRank, build_mock_runner, mock_runner_config
from core.testing.mock_vendor import VendorMoe
from core.testing.tiny_model import TinyModel, tiny_config

CONFIG = MockConfig(vocab_size=61, context_length=40)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


def make(hardware: MockGraphHardware | None = None, config: MockConfig = CONFIG) -> ModelRunner:
    runner = build_mock_runner(
        config, hardware=hardware or MockGraphHardware(), max_running=4, attention=CapturableAttention
    )
    runner.warm_up()
    return runner


@pytest.mark.parametrize("sizes", [(8, 4), (0, 4), (4, 4), (4, 65)])
def test_impossible_sizes_are_an_error(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MockGraphHardware, "graphs", lambda self, facts: MockGraphs((), sizes))
    with pytest.raises(
        PluginError, match=r"MockGraphs records steps of .* tokens in pieces.* between 1 and 64"
    ) as found:
        make()
    assert "max_tokens" in str(found.value.hint)


def test_more_tokens_than_all_rows_have_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MockGraphHardware, "graphs", lambda self, facts: MockGraphs((), (24,)))
    with pytest.raises(PluginError, match="between 1 and 20,"):
        make(config=MockConfig(vocab_size=61, context_length=5))


def test_what_is_recorded_is_a_step_that_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """No prompt is longer than the context, however many tokens are recorded."""
    seen: list[BatchLayout] = []
    plan = CapturableAttention.plan

    def noted(self: CapturableAttention, layout: BatchLayout) -> None:
        seen.append(layout)
        plan(self, layout)

    monkeypatch.setattr(CapturableAttention, "plan", noted)
    config = MockConfig(vocab_size=61, context_length=10)
    runner = make(config=config)
    prompts = [layout for layout in seen if layout.num_tokens == 24]
    assert prompts
    for layout in prompts:
        assert layout.seq_lens.tolist() == layout.q_lens.tolist() == [10, 10, 4]
        assert layout.cu_q_lens.tolist() == [0, 10, 20, 24]
        assert layout.page_table.shape == (3, 3)
        assert layout.device_cu_q_lens is not None
        assert layout.device_cu_q_lens.tolist() == layout.cu_q_lens.tolist()
    assert max(int(layout.seq_lens.max()) for layout in seen) <= 10
    assert decode_all(runner, [[1, 2, 3]] * 4, 3) == [reference_greedy(config, [1, 2, 3], 3)] * 4
    assert runner.stats.pieced_steps == 1


class _Wrong(MockGraphs):
    """The last row of replays of 8 tokens is something else."""

    factor = 1.5

    def replay_pieces(self, size: int) -> torch.Tensor:
        out = super().replay_pieces(size).clone()
        if size == 8:
            out[-1] *= self.factor
        return out


class _WrongHardware(MockGraphHardware):
    kind: type[MockGraphs] = _Wrong

    def graphs(self, facts: Any) -> MockGraphs:
        self.made = self.kind((), (4, 8), on_demand=self.on_demand)
        return self.made


@pytest.mark.parametrize("on_demand", [False, True])
@pytest.mark.parametrize("factor", [1.5, float("nan"), float("inf"), 0.0])
def test_a_recording_that_gives_something_else_is_not_used(
    factor: float, on_demand: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_Wrong, "factor", factor)
    monkeypatch.setattr(_WrongHardware, "on_demand", on_demand)
    runner = make(_WrongHardware())
    assert decode_all(runner, PROMPTS, 2) == [reference_greedy(CONFIG, prompt, 2) for prompt in PROMPTS]
    assert "a step of 8 tokens that is replayed in pieces gives other hidden states" in caplog.text
    # At the start all or nothing: the second step is of three tokens.
    assert runner.stats.pieced_steps == int(on_demand)


def test_noise_of_kernels_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Wrong, "factor", 1.005)
    runner = make(_WrongHardware())
    decode_all(runner, [[1, 2, 3, 4, 5]], 1)
    assert runner.stats.pieced_steps == 1


# Several ranks


def test_ranks_agree() -> None:
    def work(rank: ThreadRank) -> list[Any]:
        agreement = Agreement(rank, torch.device("cpu"))

        def fails() -> None:
            raise ValueError(f"no memory on rank {rank.rank}")

        return [
            agreement.everywhere(True),
            agreement.everywhere(rank.rank == 0),
            agreement.attempt(lambda: None),
            agreement.attempt(fails if rank.rank else lambda: None),
        ]

    first, second = run_ranks(2, work)
    assert first[:3] == second[:3] == [True, False, None]
    assert isinstance(first[3], EngineError)
    assert "another rank" in str(first[3])
    assert str(second[3]) == "no memory on rank 1"
    assert Agreement(SingleRank(), torch.device("cpu")).everywhere(False) is False


_ranks: dict[int, ThreadRank] = {}


@torch.library.custom_op("coretest::sum_over_ranks", mutates_args=())
def sum_over_ranks(x: torch.Tensor, group: int) -> torch.Tensor:
    """A collective that recordings know as one operation."""
    return ThreadRank.all_reduce(_ranks[group], x)


class _Recordable(ThreadRank):
    """sums: shapes, in order."""

    def __init__(self, rank: ThreadRank) -> None:
        super().__init__(rank.rank, rank.slots, rank.barrier)
        self.sums: list[tuple[int, ...]] = []
        self.recording = False
        _ranks[self.rank] = self

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.recording = bool(_get_current_dispatch_mode_stack())
        made: torch.Tensor = sum_over_ranks(x, self.rank)
        self.recording = False
        return made

    def _exchange(self, x: torch.Tensor) -> list[torch.Tensor]:
        if self.recording:  # nothing is sent while a device records
            return [x, x]
        self.sums.append(tuple(x.shape))
        return super()._exchange(x.clone())  # the other rank may read it when this one is further on


class _Fails(MockGraphs):
    """Rank 1 has no memory for steps of 8 tokens."""

    rank = 0

    def capture_pieces(self, size: int, run: Any) -> None:
        if self.rank == 1 and size == 8:
            raise RuntimeError("no memory for a graph")
        super().capture_pieces(size, run)


def ranked(rank: ThreadRank, kind: type[MockGraphs], sizes: tuple[int, ...], on_demand: bool) -> Any:
    """(tokens of this rank's runner, its statistics, the collectives' shapes)"""
    tp = _Recordable(rank)
    config = mock_runner_config(max_running=4, attention=CapturableAttention)
    spec = TinyModel.spec(tiny_config())
    config = replace(
        config, spec=spec, arch=TinyModel, tp=tp, moe=VendorMoe(PluginContext()), attention=(CapturableAttention,),
        context_length=64,
    )  # fmt: skip

    class Hardware(MockGraphHardware):
        def graphs(self, facts: Any) -> MockGraphs:
            made = kind((), sizes, on_demand=on_demand)
            if isinstance(made, _Fails):
                made.rank = rank.rank
            return made

    runner = ModelRunner(config, Hardware())
    runner.load()
    runner.allocate(40)
    runner.warm_up()
    tp.sums.clear()
    return decode_all(runner, PROMPTS, 3), runner.stats, tp.sums


@pytest.mark.parametrize("on_demand", [False, True])
def test_collectives_are_recorded_with_the_rest(on_demand: bool) -> None:
    launched, _ = run_ranks(2, lambda rank: ranked(rank, MockGraphs, (), False))
    first, second = run_ranks(2, lambda rank: ranked(rank, MockGraphs, (4, 16), on_demand))
    assert first[0] == second[0] == launched[0]
    assert first[1].pieced_steps == second[1].pieced_steps == 3
    assert first[2] == second[2]
    assert (16, 32) in first[2], "sums over the padding too"
    assert (9, 32) in launched[2]


@pytest.mark.parametrize("on_demand", [False, True])
def test_what_one_rank_cannot_record_no_rank_replays(on_demand: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Else they would sum tensors of different sizes."""
    launched, _ = run_ranks(2, lambda rank: ranked(rank, MockGraphs, (), False))
    first, second = run_ranks(2, lambda rank: ranked(rank, _Fails, (4, 8, 16), on_demand))
    assert first[0] == second[0] == launched[0]
    assert first[1].pieced_steps == second[1].pieced_steps == (3 if on_demand else 0)
    assert first[2] == second[2]
    assert "another rank" in caplog.text
    assert "no memory for a graph" in caplog.text
