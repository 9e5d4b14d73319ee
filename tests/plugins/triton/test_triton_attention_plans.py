"""What is decided on the host: common prefixes, which rows go to which kernel, sizes of tiles and splits, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from core.interfaces.spec import StateKind
from core.testing.contracts.attention_world import Shape
from plugin_triton.attention.backend import TritonAttention
from plugin_triton.attention.sharing import SharedRows, shared_prefixes
from plugin_triton.attention.tiles import (
    MAX_PLACES,
    MAX_PREFIXES,
    PREFIX_BLOCK,
    Device,
    HeadShape,
    Splits,
    decode_tile,
    power_of_two,
    prefill_tile,
)

HOPPER = Device.nvidia(9, 132, 227 << 10)
BLACKWELL = Device.nvidia(10, 148, 227 << 10)
SMALL = Device(304, 64 << 10, wide=False)


def table_of(*families: tuple[int, int], columns: int = 40) -> np.ndarray:
    """Page numbers of families (rows, pages in common), each row with pages of its own after those."""
    rows, page = [], 1
    for count, common in families:
        shared = np.arange(page, page + common)
        page += common
        for _ in range(count):
            own = np.arange(page, page + columns - common)
            page += columns - common
            rows.append(np.concatenate((shared, own)))
    return np.array(rows, np.int32)


def found(table: np.ndarray, lens: int | np.ndarray, page_size: int = 16) -> list[tuple[list[int], int]]:
    lens = np.broadcast_to(np.asarray(lens, np.int32), len(table))
    return [(rows.tolist(), tokens) for rows, tokens in shared_prefixes(table, lens, page_size)]


class TestSharedPrefixes:
    def test_families(self) -> None:
        table = table_of((8, 16), (3, 30), (10, 33))
        assert found(table, 600) == [
            (list(range(11, 21)), 33 * 16 // PREFIX_BLOCK * PREFIX_BLOCK),
            (list(range(8)), 256),
        ]

    def test_rows_of_a_family_may_be_anywhere(self) -> None:
        table = table_of((8, 16), (8, 1))
        mixed = table.reshape(2, 8, -1).swapaxes(0, 1).reshape(16, -1)
        assert found(mixed, 600) == [(list(range(0, 16, 2)), 256)]

    @pytest.mark.parametrize(("rows", "pages"), [(7, 30), (8, 15)])
    def test_few_rows_or_tokens_do_not_pay(self, rows: int, pages: int) -> None:
        assert found(table_of((rows, pages)), 600) == []

    def test_a_row_keeps_a_token_of_its_own(self) -> None:
        """The newest token's page is being written: it is never read as a part of the prefix."""
        table = np.repeat(table_of((1, 16)), 8, 0)
        assert found(table, 385) == [(list(range(8)), 384)]
        assert found(table, 384) == [(list(range(8)), 256)]

    def test_the_shortest_row_counts(self) -> None:
        table = table_of((8, 40))
        lens = np.full(8, 600, np.int32)
        lens[3] = 300
        assert found(table, lens) == [(list(range(8)), 256)]

    def test_padding_rows_on_the_null_page_share_nothing(self) -> None:
        assert found(np.zeros((16, 40), np.int32), 1) == []
        assert found(np.zeros((16, 40), np.int32), 600) == []

    def test_stale_columns_past_the_end(self) -> None:
        """Rows that hold the same old page numbers past their end."""
        table = table_of((8, 40))
        assert found(table, 260) == [(list(range(8)), 256)]
        assert found(table, 100) == []

    def test_no_more_than_there_is_room_for(self) -> None:
        table = table_of(*((8, 16 + 8 * n) for n in range(MAX_PREFIXES + 2)), columns=70)
        kept = found(table, 1100)
        assert len(kept) == MAX_PREFIXES
        assert kept[0][1] == max(tokens for _, tokens in kept)

    def test_large_pages(self) -> None:
        assert found(table_of((8, 3), columns=6), 1200, 256) == [(list(range(8)), 768)]


class TestSharedRows:
    def test_tiles(self) -> None:
        shared = SharedRows(40, 8, torch.device("cpu"))
        before = shared.shared_lens.data_ptr(), shared.tile_ends.data_ptr(), shared.order.data_ptr()
        rows = np.arange(3, 23)
        shared.set([(rows, 512), (np.arange(30, 38), 256)])
        assert shared.shared_lens.tolist() == [0] * 3 + [512] * 20 + [0] * 7 + [256] * 8 + [0] * 2
        ends = shared.tile_ends.tolist()
        assert [end - 8 * tile for tile, end in enumerate(ends)] == [8, 8, 4, 8] + [0] * (len(ends) - 4)
        assert shared.order[:20].tolist() == rows.tolist()
        assert shared.order[24:32].tolist() == list(range(30, 38))
        shared.set([])
        assert not shared.shared_lens.any()
        assert shared.tile_ends.tolist() == [8 * tile for tile in range(len(ends))]
        assert before == (shared.shared_lens.data_ptr(), shared.tile_ends.data_ptr(), shared.order.data_ptr())

    def test_all_families_fit(self) -> None:
        """Each family may leave a tile half empty."""
        shared = SharedRows(9 * MAX_PREFIXES, 8, torch.device("cpu"))
        shared.set([(np.arange(9 * n, 9 * n + 9), 256) for n in range(MAX_PREFIXES)])
        assert sorted(shared.order[shared.order > 0].tolist()) == list(range(1, 9 * MAX_PREFIXES))


SHAPES = [
    HeadShape.cut(32, 8, 128, 128), HeadShape.cut(8, 4, 256, 256), HeadShape.cut(7, 1, 80, 80),
    HeadShape.cut(4, 4, 512, 512), HeadShape.cut(16, 16, 192, 128),
    HeadShape(20, 1, 512, 64, 512, latent=True), HeadShape(128, 1, 512, 64, 512, latent=True),
]  # fmt: skip


class TestSizes:
    @pytest.mark.parametrize("dim", [4, 16, 20, 64, 80, 96, 112, 128, 192, 256, 500, 512])
    def test_a_head_is_cut_in_two(self, dim: int) -> None:
        shape = HeadShape.cut(4, 2, dim, dim)
        assert shape.dim + shape.tail == dim
        assert power_of_two(shape.dim) == max(16, shape.dim) or dim < 16

    @pytest.mark.parametrize(
        "device", [HOPPER, SMALL, Device.nvidia(10, 148, 227 << 10)], ids=["sm_90", "gfx942", "sm_100"]
    )
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_tiles_are_possible(self, shape: HeadShape, device: Device) -> None:
        for itemsize in (2, 4):
            for cache in {1, itemsize}:
                for tile in (
                    decode_tile(shape, 1, itemsize, cache, device),
                    prefill_tile(shape, itemsize, cache, device),
                ):
                    assert tile.n >= 16
                    assert tile.n <= PREFIX_BLOCK
                    assert tile.m >= 16
                    assert tile.stages >= 1

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_splits_have_places(self, shape: HeadShape) -> None:
        for rows in range(1, 300):
            splits = Splits.of(rows, shape, -(-shape.group // 64), 8, HOPPER, shares=True)
            assert 1 <= splits.own <= MAX_PLACES
            assert splits.parts <= MAX_PLACES
            assert splits.own & (splits.own - 1) == 0
            assert bool(splits.shared) == (rows >= 8)


class TestRefusals:
    CPU = torch.device("cpu")

    def test_heads(self) -> None:
        reason = TritonAttention.rejects(replace(Shape(), num_heads=6, num_kv_heads=4).config(self.CPU))
        assert reason == "6 query heads are not a multiple of 4 KV heads"

    def test_too_wide(self) -> None:
        reason = TritonAttention.rejects(replace(Shape(), head_dim=576).config(self.CPU))
        assert reason == "a head of layer 3 is 576 wide, at most 512 are possible"

    def test_latents_with_other_rules(self) -> None:
        latent = replace(Shape(), kind=StateKind.MLA_LATENT, latent_dim=32, rope_dim=8)
        assert TritonAttention.rejects(latent.config(self.CPU)) is None
        assert "soft cap" in (TritonAttention.rejects(latent.with_rule(softcap=2.0).config(self.CPU)) or "")
