"""Launches of one layer's kernels: sizes fixed when it is built, pointers and strides filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from core.interfaces.spec import AttentionSpec
from plugin_triton.attention.decode import decode_kernel
from plugin_triton.attention.prefill import prefill_kernel
from plugin_triton.attention.prefix import prefix_kernel
from plugin_triton.attention.step import Step
from plugin_triton.attention.store import store_kernel
from plugin_triton.attention.tiles import (
    MAX_PLACES,
    MAX_QUERIES,
    PREFIX_BLOCK,
    Device,
    HeadShape,
    Splits,
    Tile,
    decode_tile,
    invariant_tile,
    power_of_two,
    prefill_tile,
)
from plugin_triton.launch import Launch

_LOG2_E = 1.4426950408889634


class Cached:
    """One layer's cache: keys [slots, heads, dim + tail], values [slots, heads, v_dim] (of latents the keys again)."""

    __slots__ = ("arguments", "keys", "values")

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values
        # As all kernels take them: each buffer with the strides of its slots and heads.
        self.arguments = (keys, *keys.stride()[:2], values, *values.stride()[:2])


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where splits leave their results: parts float32, logs float32, and arrivals int32, zero between launches."""

    parts: torch.Tensor
    logs: torch.Tensor
    arrivals: torch.Tensor


class Launcher:
    """One layer, or several with the same shape and rule.

    page_size 0: of keys that lie in order. scales: of cached keys and values. shares: whether common prefixes are
    looked for. invariant: of `prefill`, as the kernel says.
    """

    def __init__(
        self,
        shape: HeadShape,
        spec: AttentionSpec,
        *,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        scales: tuple[float, float],
        page_size: int,
        device: Device,
        pdl: bool,
        shares: bool = False,
        invariant: bool = False,
    ) -> None:
        self.shape, self.spec = shape, spec
        self.itemsize, self.cache_itemsize = dtype.itemsize, kv_dtype.itemsize
        self.page_size, self.device, self.pdl = page_size, device, pdl
        self.shares, self.invariant = shares and spec.window is None, invariant
        self.k_scale, self.v_scale = scales
        # Values of a latent are its keys.
        self.out_scale = self.k_scale if shape.latent else self.v_scale
        factor = spec.scale * self.k_scale
        self.scale = factor * _LOG2_E if spec.softcap is None else factor / spec.softcap
        self.cap = 0.0 if spec.softcap is None else spec.softcap * _LOG2_E
        self.limit = float(torch.finfo(kv_dtype).max) if kv_dtype.itemsize == 1 else 0.0
        if invariant:
            self.prefill_tile = invariant_tile(shape, self.itemsize, self.cache_itemsize, device)
        else:
            self.prefill_tile = prefill_tile(shape, self.itemsize, self.cache_itemsize, device, page_size)
        self.decode_tiles: dict[int, Tile] = {}
        self._splits: dict[int, Splits] = {}
        self._made: dict[tuple[object, ...], Launch] = {}

    @property
    def most_queries(self) -> int:
        """New tokens of a row that `decode` takes at most: so many that its tile has no more than 64 rows."""
        return max(1, min(MAX_QUERIES, 64 // self.shape.group))

    def decode_tile(self, queries: int) -> Tile:
        if queries not in self.decode_tiles:
            self.decode_tiles[queries] = decode_tile(
                self.shape, queries, self.itemsize, self.cache_itemsize, self.device
            )
        return self.decode_tiles[queries]

    @property
    def prefix_rows(self) -> int:
        """Decode rows of a tile of `prefix`."""
        return self.prefill_tile.m // min(self.shape.group, self.prefill_tile.m)

    def splits(self, rows: int) -> Splits:
        if rows not in self._splits:
            packs = _packs(self.shape.group, 64)
            self._splits[rows] = Splits.of(
                rows, self.shape, packs, self.prefix_rows, self.device, shares=self.shares and self.page_size > 0
            )
        return self._splits[rows]

    def part_elements(self, max_rows: int) -> int:
        """Floats that all parts of a step take at most, for each element of a value."""
        return max(rows * self.splits(rows).parts for rows in range(1, max_rows + 1)) * self.shape.num_heads

    def _launch(self, kernel: Any, tile: Tile | None, **constants: Any) -> Launch:
        """A launch of `kernel`, which is told the layer's sizes and what is given; tile None: 4 warps."""
        values = {
            **self.shape.blocks, "NUM_HEADS": self.shape.num_heads, "PAGE_SIZE": self.page_size, "PDL": self.pdl,
            "WINDOW": self.spec.window or 0, "SOFTCAP": self.spec.softcap is not None, "LIMIT": self.limit, **constants,
        }  # fmt: skip
        if tile is not None:
            values |= {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "STAGES": tile.stages}
        names = [name for name in kernel.arg_names if name.isupper()]
        warps = 4 if tile is None else tile.warps
        return Launch(kernel, tuple(values[name] for name in names), num_warps=warps, pdl=self.pdl)

    def _queries(self, q: torch.Tensor, q_tail: torch.Tensor | None) -> tuple[Any, ...]:
        """Queries and their tails, each with the strides of tokens and heads."""
        q_strides = q.stride()
        if q_tail is None:
            if not self.shape.tail:
                return (q, q_strides[0], q_strides[1], q, q_strides[0], q_strides[1])
            q_tail = q[..., self.shape.dim :]
        tail_strides = q_tail.stride()
        return (q, q_strides[0], q_strides[1], q_tail, tail_strides[0], tail_strides[1])

    def store(
        self, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, cached: Cached, first: int, last: int
    ) -> None:
        """Write tokens first .. last-1. k [T, H, D], v [T, H, Dv]; of latents the latent and the rotated key."""
        if last <= first:
            return
        _, heads, dim = k.shape
        v_dim = v.shape[2]
        if self.shape.latent:  # there, values are the keys' tails
            values = cached.keys[..., self.shape.dim :]
            targets = (*cached.arguments[:3], values, *values.stride()[:2])
        else:
            targets = cached.arguments
        block = max(1, 4096 // max(power_of_two(dim), power_of_two(v_dim)))
        key = "store", k.dtype, v.dtype, slots.dtype, heads, dim, v_dim
        launch = self._made.get(key)
        if launch is None:
            launch = self._made[key] = self._launch(
                store_kernel, None, HEADS=heads, DIM=dim, DIM_BLOCK=power_of_two(dim), V_DIM=v_dim,
                V_BLOCK=power_of_two(v_dim), BLOCK=block,
            )  # fmt: skip
        launch.start(
            k.get_device(), -(-(last - first) * heads // block), 1, 1, k, *k.stride()[:2], v, *v.stride()[:2], slots,
            first, last, *targets, self.k_scale, self.k_scale if self.shape.latent else self.v_scale,
        )  # fmt: skip

    def decode(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        cached: Cached,
        step: Step,
        work: Workspace,
        *,
        q_tail: torch.Tensor | None = None,
        new: tuple[torch.Tensor, torch.Tensor] | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        """Rows of `few` into out [T, H, v_dim]. new: k and v that are to be stored on the way; only for one token a
        row."""
        shape, rows = self.shape, step.few
        tile, splits = self.decode_tile(step.queries), self.splits(rows)
        if step.queries > 1:  # every token takes places of its own
            own = min(splits.own, work.logs.numel() // (step.few_tokens * shape.num_heads))
            splits = Splits(1 << (max(own, 1).bit_length() - 1), splits.least, 0)
        pack = min(shape.group, tile.m)
        packs = _packs(shape.group, pack)
        shared = step.shared if splits.shared else None
        if shared is not None:
            self._prefix(q, cached, step, work, shared, splits, q_tail)
        k, v = new if new is not None else (q, q)
        key = (
            "decode", q.dtype, step.slots.dtype, step.queries, shared is not None, new is not None,
            None if sinks is None else sinks.dtype,
        )  # fmt: skip
        launch = self._made.get(key)
        if launch is None:
            launch = self._made[key] = self._launch(
                decode_kernel, tile, QUERIES=step.queries, PACK=pack, PACKS=packs, SHARED=shared is not None,
                SHARED_LEAST=PREFIX_BLOCK, PLACES=MAX_PLACES, SINKS=sinks is not None, STORE=new is not None,
                AT_ONCE=max(1, min(4, 256 * tile.warps * 32 // (tile.m * power_of_two(shape.v_dim)))),
            )  # fmt: skip
        launch.start(
            q.get_device(), rows, shape.num_kv_heads * packs, splits.own, *self._queries(q, q_tail),
            out, *out.stride()[:2], k, *k.stride()[:2], v, *v.stride()[:2], step.slots, *cached.arguments,
            self.k_scale, self.out_scale, step.table, step.table_stride, step.seq_lens, step.cu_q_lens,
            q if sinks is None else sinks, self.scale, self.cap, work.parts, work.logs, work.arrivals,
            step.seq_lens if shared is None else shared.shared_lens, splits.least,
            0 if shared is None else splits.shared,
        )  # fmt: skip

    def _prefix(
        self,
        q: torch.Tensor,
        cached: Cached,
        step: Step,
        work: Workspace,
        shared: Any,
        splits: Splits,
        q_tail: torch.Tensor | None,
    ) -> None:
        shape, tile = self.shape, self.prefill_tile
        pack = min(shape.group, tile.m)
        packs = _packs(shape.group, pack)
        key = "prefix", q.dtype, shared.tile_rows
        launch = self._made.get(key)
        if launch is None:
            launch = self._made[key] = self._launch(
                prefix_kernel, tile, PACK=pack, PACKS=packs, ROWS=shared.tile_rows, SHARED_LEAST=PREFIX_BLOCK
            )
        launch.start(
            q.get_device(), shared.tiles, shape.num_kv_heads * packs, splits.shared, *self._queries(q, q_tail),
            *cached.arguments, step.table, step.table_stride, self.scale, self.cap, work.parts, work.logs,
            shared.shared_lens, shared.order, shared.tile_ends, splits.own,
        )  # fmt: skip

    def prefill(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        cached: Cached,
        step: Step,
        *,
        q_tail: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
        history: str = "any",
    ) -> None:
        """Rows after `few` into out [T, H, v_dim]. history: as in `prefill_kernel`."""
        shape, tile = self.shape, self.prefill_tile
        pack = min(shape.group, tile.m)
        packs, tokens = _packs(shape.group, pack), tile.m // pack
        num_seqs = step.num_seqs - step.few
        num_tiles = (step.num_tokens - step.few_tokens) // tokens + num_seqs
        key = "prefill", q.dtype, history, None if sinks is None else sinks.dtype
        launch = self._made.get(key)
        if launch is None:
            launch = self._made[key] = self._launch(
                prefill_kernel, tile, PACK=pack, PACKS=packs, TOKENS=tokens, SINKS=sinks is not None, HISTORY=history,
                INVARIANT=self.invariant,
            )  # fmt: skip
        launch.start(
            q.get_device(), num_tiles * shape.num_kv_heads * packs, 1, 1, *self._queries(q, q_tail),
            out, *out.stride()[:2], *cached.arguments, self.out_scale, step.table, step.table_stride, step.seq_lens,
            step.cu_q_lens, step.few, num_seqs, num_tiles, q if sinks is None else sinks, self.scale, self.cap,
        )  # fmt: skip


def _packs(group: int, pack: int) -> int:
    """Tiles that a KV head's query heads take, `pack` heads each."""
    return -(-group // min(group, pack))
