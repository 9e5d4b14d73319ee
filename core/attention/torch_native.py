"""Attention in plain PyTorch: any device, any page size, the reference for every other backend."""

from __future__ import annotations

import numpy as np
import torch

from core.attention.decode import decode_rows
from core.attention.latent import (
    LatentPlan,
    LatentPlanner,
    LatentShape,
    absorbed_queries,
    absorbed_values,
    expanded_rows,
)
from core.attention.narrow import NarrowRows, Rows
from core.attention.plan import Planner, Rule, StepPlan
from core.attention.prefill import prefill_rows
from core.interfaces.attention import AttentionBackend, AttentionCapabilities, AttentionConfig, MlaWeights, TokenRows
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, StateKind


class TorchNativeAttention(AttentionBackend):
    """KV of a layer: K [num_pages * page_size, Hkv * head_dim] and V [num_pages * page_size, Hkv * v_head_dim]; of
    latent attention one buffer [num_pages * page_size, latent_dim + rope_dim]; all in the cache's type.

    One row a slot, so that one index_select fetches the tokens of many pages, whatever the page size.
    """

    capabilities = AttentionCapabilities(
        state_kinds=frozenset({StateKind.FULL, StateKind.SLIDING_WINDOW, StateKind.MLA_LATENT}),
        kv_dtypes=("auto", "bfloat16", "fp8_e4m3", "fp8_e5m2"),
        softcap=True,
        sinks=True,
    )

    def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
        super().__init__(config, ctx)
        self._planner = Planner(config.page_size, _max_block_tokens(config), config.device, config.dtype)
        self._rules: dict[int, Rule] = {}
        self._plans: dict[Rule, StepPlan] = {}
        self._latent: dict[int, LatentPlanner] = {}
        self._latent_plans: dict[LatentShape, LatentPlan] = {}
        if config.group.kind is StateKind.MLA_LATENT:
            merges = config.device.type == "cpu"  # see kernels.attend_lse
            self._latent = {
                layer: LatentPlanner(config, self._planner, spec, merges=merges)
                for layer, spec in config.layers.items()
            }
        else:
            self._rules = {layer: _rule(spec, config.device) for layer, spec in config.layers.items()}
        self._slots: torch.Tensor | None = None
        # Whether the cache keeps what is attended to as it came.
        self._exact = config.cache_dtype == config.dtype

    @classmethod
    def rejects(cls, config: AttentionConfig) -> str | None:
        if config.num_heads % config.num_kv_heads:
            return f"{config.num_heads} query heads are not a multiple of {config.num_kv_heads} KV heads"
        if config.group.kind is StateKind.MLA_LATENT:
            for layer, spec in config.layers.items():
                if spec.window is not None or spec.softcap is not None or spec.has_sinks:
                    return f"latent attention of layer {layer} has a window, a soft cap or sinks"
        return None

    def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
        slots = self.config.num_pages * self.config.page_size
        if self._latent:
            return {
                layer: (_zeros(slots, planner.shape.row, self.config.cache_dtype, self.config.device),)
                for layer, planner in self._latent.items()
            }
        return {
            layer: tuple(
                _zeros(slots, self.config.num_kv_heads * dim, self.config.cache_dtype, self.config.device)
                for dim in (spec.head_dim, spec.v_head_dim)
            )
            for layer, spec in self.config.layers.items()
        }

    def plan(self, layout: BatchLayout) -> None:
        self._slots = layout.slot_mapping
        self._plans = {rule: self._planner.plan(layout, rule) for rule in set(self._rules.values())}
        planners = {planner.shape: planner for planner in self._latent.values()}  # most often one for all layers
        self._latent_plans = {shape: planner.plan(layout) for shape, planner in planners.items()}

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert self._slots is not None, "plan() comes before run()"
        plan = self._plans[self._rules[layer]]
        spec = self.config.layers[layer]
        num_kv_heads = self.config.num_kv_heads
        k_buffer: Rows
        v_buffer: Rows
        k_buffer, v_buffer = kv
        if not self._exact:
            k_scale, v_scale = self.config.scales(layer)
            k_buffer, v_buffer = self._narrowed(kv[0], k, k_scale), self._narrowed(kv[1], v, v_scale)
            k = v = None  # they are attended to as they were stored
        elif k is not None and v is not None:
            # Two dimensions, because index_copy_ is twice as fast on them as on three.
            kv[0].index_copy_(0, self._slots, k.flatten(1))
            kv[1].index_copy_(0, self._slots, v.flatten(1))
        num_rows, num_decodes = q.shape[0], plan.num_decodes
        if num_decodes == num_rows:
            return decode_rows(q, k_buffer, v_buffer, plan, spec, num_kv_heads, sinks)

        out = q.new_empty(num_rows, q.shape[1], spec.v_head_dim)
        if num_decodes:
            out[:num_decodes] = decode_rows(q[:num_decodes], k_buffer, v_buffer, plan, spec, num_kv_heads, sinks)
        if plan.causal or plan.masked:
            if k is None or v is None:  # stored by a fused op: read this step's tokens back
                k = k_buffer.index_select(0, self._slots).view(num_rows, num_kv_heads, -1)
                v = v_buffer.index_select(0, self._slots).view(num_rows, num_kv_heads, -1)
            prefill_rows(q, k, v, k_buffer, v_buffer, out, plan, spec, num_kv_heads, sinks)
        if plan.num_tokens < num_rows:
            out[plan.num_tokens :] = 0  # padding rows: defined, and never read
        return out

    def token_rows(self, kv: tuple[torch.Tensor, ...]) -> TokenRows | None:
        assert self._slots is not None, "plan() comes before token_rows()"
        if not self._exact:
            return None
        heads = (self.config.num_kv_heads, -1)
        return kv[0].unflatten(1, heads), kv[1].unflatten(1, heads), self._slots

    def run_mla(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        weights: MlaWeights,
        layer: int,
        kv: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        assert self._slots is not None, "plan() comes before run_mla()"
        shape, scale = self._latent[layer].shape, self.config.layers[layer].scale
        plan = self._latent_plans[shape]
        rule = AttentionSpec(shape.num_heads, 1, shape.row, scale)  # of cached rows, which are keys and values in one
        buffer: Rows
        (buffer,) = kv
        rows = torch.cat((latent, k_rope), -1)
        if self._exact:
            kv[0].index_copy_(0, self._slots, rows)
        else:
            buffer = self._narrowed(kv[0], rows, self.config.scales(layer)[0])
            rows = buffer.index_select(0, self._slots)
        num_rows, num_decodes = q_nope.shape[0], plan.decodes.num_decodes
        if num_decodes == num_rows:
            q = absorbed_queries(q_nope, q_rope, weights)
            return absorbed_values(decode_rows(q, buffer, buffer, plan.decodes, rule, 1, None), weights)

        out = q_nope.new_empty(num_rows, shape.num_heads, shape.v_dim)
        if num_decodes:
            q = absorbed_queries(q_nope[:num_decodes], q_rope[:num_decodes], weights)
            sums = decode_rows(q, buffer, buffer, plan.decodes, rule, 1, None)
            out[:num_decodes] = absorbed_values(sums, weights)
        for sequence in plan.absorbed:
            mine = slice(sequence.first_row, sequence.last_row)
            q, own = absorbed_queries(q_nope[mine], q_rope[mine], weights), rows[mine]
            sums = torch.empty_like(q)
            prefill_rows(q, own, own, buffer, buffer, sums, sequence.plan, rule, 1, None)
            out[mine] = absorbed_values(sums, weights)
        expanded_rows(q_nope, q_rope, rows, buffer, out, plan.expanded, weights, shape, scale)
        if plan.decodes.num_tokens < num_rows:
            out[plan.decodes.num_tokens :] = 0
        return out

    def _narrowed(self, buffer: torch.Tensor, rows: torch.Tensor | None, scale: float) -> NarrowRows:
        """The cache as it is read, after this step's rows [T, ...] were stored, if they were not yet."""
        assert self._slots is not None
        cache = NarrowRows(buffer, scale, self.config.dtype)
        if rows is not None:
            cache.store(self._slots, rows.flatten(1))
        return cache


def _zeros(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On a CPU the kernel hands out zeroed memory as it is first touched: writing the zeros would take seconds for a
    cache of a few GiB, and would take the memory too."""
    if device.type != "cpu":
        return torch.zeros(rows, columns, dtype=dtype, device=device)
    raw = np.zeros(rows * columns * dtype.itemsize, np.uint8)
    return torch.from_numpy(raw).view(dtype).view(rows, columns)


# Bytes of keys gathered for one call. On a CPU larger copies fall out of its cache, and the allocator returns
# their memory to the system after each call (measured: twice to three times slower beyond 8 MiB).
_GATHER_BYTES_CPU = 4 << 20
_GATHER_BYTES = 256 << 20


def _max_block_tokens(config: AttentionConfig) -> int:
    dims = [spec.latent_dim + spec.rope_dim or max(spec.head_dim, spec.v_head_dim) for spec in config.layers.values()]
    widest = max(dims, default=1)
    row_bytes = config.num_kv_heads * widest * config.dtype.itemsize
    return max(1, (_GATHER_BYTES_CPU if config.device.type == "cpu" else _GATHER_BYTES) // row_bytes)


def _rule(spec: AttentionSpec, device: torch.device) -> Rule:
    on_cpu = device.type == "cpu"
    fused_lse = on_cpu and spec.head_dim == spec.v_head_dim  # see kernels.attend_lse
    masked = spec.softcap is not None or (not fused_lse and (on_cpu or spec.has_sinks))
    return Rule(spec.window, masked, fused_lse)
