"""What a step calls: pieces of its sequences, widths of tables, bounds of parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from core.interfaces.batch import BatchLayout
from core.testing.contracts.attention_world import Shape
from plugin_fa3.plan import Piece, plan_step
from plugin_fa3.splits import Splits

CPU = torch.device("cpu")


def _layout(
    q_lens: list[int], seq_lens: list[int], num_decodes: int, *, device: bool = True, captured: bool = False
) -> BatchLayout:
    q, lens = np.array(q_lens, np.int32), np.array(seq_lens, np.int32)
    cu = np.concatenate([[0], np.cumsum(q)]).astype(np.int32)
    table = np.arange(1, len(q) * 40 + 1, dtype=np.int32).reshape(len(q), 40)
    tensors = [torch.from_numpy(x.copy()) if device else None for x in (table, lens, cu)]
    return BatchLayout(
        16, num_decodes, q, lens, cu, table, torch.zeros(int(cu[-1]), dtype=torch.int64), *tensors, captured
    )


@pytest.mark.parametrize(
    ("q_lens", "seq_lens", "num_decodes", "pieces"),
    [
        ([1, 1], [5, 9], 2, []),
        ([7, 3], [7, 3], 0, [(0, 2, True)]),
        ([1, 7, 3], [4, 20, 3], 1, [(1, 2, False), (2, 3, True)]),
        ([1, 1], [1, 8], 0, [(0, 1, True), (1, 2, False)]),
        ([2, 2, 2, 2], [2, 4, 2, 4], 0, [(0, 1, True), (1, 2, False), (2, 3, True), (3, 4, False)]),
        ([2, 2, 2, 2, 2], [2, 4, 2, 4, 2], 0, [(0, 5, False)]),  # too many calls: one over pages
    ],
)
def test_rows_that_start_here_and_rows_with_history_are_calls_of_their_own(
    q_lens: list[int], seq_lens: list[int], num_decodes: int, pieces: list[tuple[int, int, bool]]
) -> None:
    layout = _layout(q_lens, seq_lens, num_decodes)
    step = plan_step(layout, 4, CPU)
    assert (step.decodes is not None) == bool(num_decodes)
    found = []
    for piece in step.prefills:
        assert piece.paged.lengths is not None
        first = int(np.flatnonzero(layout.cu_q_lens == int(piece.paged.cu_q[0]))[0])
        found.append((first, first + len(piece.paged.lengths), piece.fresh is not None))
    assert found == pieces


@pytest.mark.parametrize("device", [True, False])
def test_tables_are_as_wide_as_the_call_needs_but_for_recorded_steps(device: bool) -> None:
    step = plan_step(_layout([1, 1, 9], [17, 40, 100], 2, device=device), 4, CPU)
    assert step.decodes is not None
    assert step.decodes.paged.page_table is not None
    assert step.decodes.paged.page_table.tolist() == [[1, 2, 3], [41, 42, 43]]
    assert step.decodes.paged.max_k == 48
    assert step.decodes.paged.cu_q.tolist() == [0, 1, 2]
    assert step.prefills[0].paged.cu_q.tolist() == [2, 11]
    assert step.prefills[0].paged.max_k == 112
    recorded = plan_step(_layout([1, 1], [17, 40], 2, captured=True), 4, CPU)
    assert recorded.decodes is not None
    assert recorded.decodes.paged.max_k == 640


def test_the_layouts_own_tensors_are_used() -> None:
    layout = _layout([1, 1], [17, 40], 2, captured=True)
    step = plan_step(layout, 4, CPU)
    assert step.decodes is not None
    paged = step.decodes.paged
    for mine, given in (
        (paged.page_table, layout.device_page_table), (paged.lengths, layout.device_seq_lens),
        (paged.cu_q, layout.device_cu_q_lens),
    ):  # fmt: skip
        assert mine is not None
        assert given is not None
        assert mine.data_ptr() == given.data_ptr()


def _piece(q_lens: list[int]) -> Piece:
    step = plan_step(_layout(q_lens, [600] * len(q_lens), 0), 4, CPU)
    (piece,) = step.prefills
    return piece


def _splits(asked: int, num_heads: int, num_kv_heads: int) -> Splits:
    shape = Shape(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=128, page_size=16, dtype=torch.bfloat16)
    return Splits(asked, shape.config(CPU))


def test_decodes_may_be_split_until_one_sequence_fills_the_gpu_or_memory_ends() -> None:
    splits = _splits(0, 32, 8)
    bounds = [splits.of_decodes(_piece([1] * rows)) for rows in (1, 64, 256, 512, 4096)]
    assert bounds == [17, 17, 16, 8, 1]  # 132 multiprocessors, 8 KV heads; 64 MiB of float32 [parts, rows, 32, 128]
    assert _splits(0, 32, 1).of_decodes(_piece([1])) == 32
    assert _splits(5, 32, 8).of_decodes(_piece([1] * 4096)) == 5


def test_prefills_are_split_if_their_rows_leave_processors_idle() -> None:
    splits = _splits(5, 32, 8)
    assert splits.of_prefills(_piece([16])) == 17
    assert splits.of_prefills(_piece([64])) == 9
    assert splits.of_prefills(_piece([512])) == 1  # 16 tiles of 128 rows for each KV head


@pytest.mark.parametrize(("q_lens", "long"), [([2000], True), ([1000] * 8, False), ([2000] + [100] * 5, True)])
def test_what_is_worth_copying_goes_by_the_length_that_a_token_sees(q_lens: list[int], long: bool) -> None:
    lens = np.array(q_lens, np.int32)
    cu = np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)
    table = np.zeros((len(q_lens), 200), np.int32)
    layout = BatchLayout(16, 0, lens, lens, cu, table, torch.zeros(int(cu[-1]), dtype=torch.int64))
    (piece,) = plan_step(layout, 4, CPU).prefills
    assert piece.long is long
    (history,) = plan_step(replace(layout, seq_lens=lens + 1), 4, CPU).prefills
    assert not history.long
