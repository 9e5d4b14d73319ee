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
    power_of_two,
    prefill_tile,
)

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Cached:
    """One layer's cache: keys [slots, heads, dim + tail], values [slots, heads, v_dim] (of latents the keys again)."""

    keys: torch.Tensor
    values: torch.Tensor

    def arguments(self) -> dict[str, Any]:
        return {
            "keys": self.keys,
            "key_stride": self.keys.stride(0),
            "key_head_stride": self.keys.stride(1),
            "values": self.values,
            "value_stride": self.values.stride(0),
            "value_head_stride": self.values.stride(1),
        }


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where splits leave their results: parts float32, logs float32, and arrivals int32, zero between launches."""

    parts: torch.Tensor
    logs: torch.Tensor
    arrivals: torch.Tensor


class Launcher:
    """One layer, or several with the same shape and rule.

    page_size 0: of keys that lie in order. scales: of cached keys and values. shares: whether common prefixes are
    looked for.
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
    ) -> None:
        self.shape, self.spec = shape, spec
        self.itemsize, self.cache_itemsize = dtype.itemsize, kv_dtype.itemsize
        self.page_size, self.device, self.pdl = page_size, device, pdl
        self.shares = shares and spec.window is None
        self.k_scale, self.v_scale = scales
        # Values of a latent are its keys.
        self.out_scale = self.k_scale if shape.latent else self.v_scale
        factor = spec.scale * self.k_scale
        self.scale = factor * _LOG2_E if spec.softcap is None else factor / spec.softcap
        self.cap = 0.0 if spec.softcap is None else spec.softcap * _LOG2_E
        self.limit = float(torch.finfo(kv_dtype).max) if kv_dtype.itemsize == 1 else 0.0
        self.prefill_tile = prefill_tile(shape, self.itemsize, self.cache_itemsize, device, page_size)
        self.decode_tiles: dict[int, Tile] = {}
        self._splits: dict[int, Splits] = {}

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

    def _rule(self, sinks: torch.Tensor | None) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "cap": self.cap,
            "WINDOW": self.spec.window or 0,
            "SOFTCAP": self.spec.softcap is not None,
            "SINKS": sinks is not None,
        }

    def _queries(self, q: torch.Tensor, q_tail: torch.Tensor | None) -> dict[str, Any]:
        if q_tail is None:
            q_tail = q[..., self.shape.dim :] if self.shape.tail else q
        return {
            "q": q,
            "q_token_stride": q.stride(0),
            "q_head_stride": q.stride(1),
            "q_tail": q_tail,
            "tail_token_stride": q_tail.stride(0),
            "tail_head_stride": q_tail.stride(1),
        }

    def store(
        self, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, cached: Cached, first: int, last: int
    ) -> None:
        """Write tokens first .. last-1. k [T, H, D], v [T, H, Dv]; of latents the latent and the rotated key."""
        if last <= first:
            return
        heads = k.shape[1]
        keys, values = cached.keys, cached.values
        if self.shape.latent:
            values = keys[..., self.shape.dim :]
        dim, v_dim = k.shape[2], v.shape[2]
        block = max(1, 4096 // max(power_of_two(dim), power_of_two(v_dim)))
        store_kernel[(-(-(last - first) * heads // block),)](
            k, k.stride(0), k.stride(1), v, v.stride(0), v.stride(1), slots, first, last,
            keys, keys.stride(0), keys.stride(1), values, values.stride(0), values.stride(1),
            self.k_scale, self.k_scale if self.shape.latent else self.v_scale,
            HEADS=heads, DIM=dim, DIM_BLOCK=power_of_two(dim), V_DIM=v_dim, V_BLOCK=power_of_two(v_dim), BLOCK=block,
            LIMIT=self.limit, num_warps=4, **_options(self.pdl),
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
        decode_kernel[(rows, shape.num_kv_heads * packs, splits.own)](
            **self._queries(q, q_tail),
            out=out, out_token_stride=out.stride(0), out_head_stride=out.stride(1),
            k=k, k_token_stride=k.stride(0), k_head_stride=k.stride(1),
            v=v, v_token_stride=v.stride(0), v_head_stride=v.stride(1), slots=step.slots,
            **cached.arguments(), k_scale=self.k_scale, v_scale=self.out_scale,
            table=step.table, table_stride=step.table.stride(0), seq_lens=step.seq_lens, cu_q_lens=step.cu_q_lens,
            sinks=q if sinks is None else sinks, **self._rule(sinks),
            parts=work.parts, logs=work.logs, arrivals=work.arrivals,
            shared_lens=step.seq_lens if shared is None else shared.shared_lens,
            QUERIES=step.queries, NUM_HEADS=shape.num_heads, PACK=pack, PACKS=packs, **shape.blocks,
            PAGE_SIZE=self.page_size, BLOCK_M=tile.m, BLOCK_N=tile.n, STAGES=tile.stages,
            least=splits.least, shared_splits=0 if shared is None else splits.shared,
            SHARED=shared is not None, SHARED_LEAST=PREFIX_BLOCK, PLACES=MAX_PLACES,
            AT_ONCE=max(1, min(4, 256 * tile.warps * 32 // (tile.m * power_of_two(shape.v_dim)))),
            STORE=new is not None, LIMIT=self.limit, num_warps=tile.warps, **_options(self.pdl),
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
        prefix_kernel[(shared.tiles, shape.num_kv_heads * packs, splits.shared)](
            **self._queries(q, q_tail), **cached.arguments(),
            table=step.table, table_stride=step.table.stride(0), scale=self.scale, cap=self.cap,
            parts=work.parts, logs=work.logs,
            shared_lens=shared.shared_lens, order=shared.order, tile_ends=shared.tile_ends,
            NUM_HEADS=shape.num_heads, PACK=pack, PACKS=packs, ROWS=shared.tile_rows, **shape.blocks,
            PAGE_SIZE=self.page_size, BLOCK_M=tile.m, BLOCK_N=tile.n, STAGES=tile.stages,
            own_splits=splits.own, SHARED_LEAST=PREFIX_BLOCK,
            SOFTCAP=self.spec.softcap is not None, num_warps=tile.warps, **_options(self.pdl),
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
        prefill_kernel[(num_tiles * shape.num_kv_heads * packs,)](
            **self._queries(q, q_tail),
            out=out, out_token_stride=out.stride(0), out_head_stride=out.stride(1),
            **cached.arguments(), v_scale=self.out_scale,
            table=step.table, table_stride=step.table.stride(0), seq_lens=step.seq_lens, cu_q_lens=step.cu_q_lens,
            first_seq=step.few, num_seqs=num_seqs, num_tiles=num_tiles,
            sinks=q if sinks is None else sinks, **self._rule(sinks),
            PACK=pack, PACKS=packs, TOKENS=tokens, **shape.blocks,
            PAGE_SIZE=self.page_size, BLOCK_M=tile.m, BLOCK_N=tile.n, STAGES=tile.stages,
            HISTORY=history, num_warps=tile.warps, **_options(self.pdl),
        )  # fmt: skip


def _options(pdl: bool) -> dict[str, Any]:
    return {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}


def _packs(group: int, pack: int) -> int:
    """Tiles that a KV head's query heads take, `pack` heads each."""
    return -(-group // min(group, pack))
