"""Attention in C over the pages of core's own layout; large prefills stay with PyTorch's fused kernels.

Importing this module compiles and loads the kernels, so that an operator who cannot have them reads why in
`core plugins list` and is served by core's own attention.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch

from core.attention.plan import Rule, StepPlan
from core.attention.prefill import prefill_rows
from core.attention.torch_native import TorchNativeAttention
from core.interfaces.attention import AttentionCapabilities, AttentionConfig
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.errors import EngineError
from core.interfaces.spec import StateKind
from plugin_cpu_native.library import ELEMENT_BYTES, Kernels, kernels

kernels()

_HEAD_DIMS = tuple(range(16, 513, 16))
# New tokens of a sequence up to which the kernel beats PyTorch's fused attention and the calls around it.
_MAX_NEW_TOKENS = 16


class CpuNativeAttention(TorchNativeAttention):
    """KV as in TorchNativeAttention: K [slots, Hkv * head_dim] and V [slots, Hkv * v_head_dim]."""

    capabilities = AttentionCapabilities(
        state_kinds=frozenset({StateKind.FULL, StateKind.SLIDING_WINDOW}),
        head_dims=_HEAD_DIMS,
        dtypes=("float32", "bfloat16"),
        hardware=("cpu",),
        softcap=True,
        sinks=True,
    )

    def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
        super().__init__(config, ctx)
        self._kernels = kernels()
        self._element = ELEMENT_BYTES[config.dtype]
        self._native = {rule: _Plan(self._kernels, config, rule) for rule in set(self._rules.values())}

    def plan(self, layout: BatchLayout) -> None:
        self._slots = layout.slot_mapping
        large = layout.q_lens > _MAX_NEW_TOKENS
        any_large = bool(large.any())
        self._plans = (
            {rule: self._planner.plan_prefills(layout, rule, np.flatnonzero(large)) for rule in self._native}
            if any_large
            else {}
        )
        take = np.ascontiguousarray(~large, dtype=np.uint8) if any_large else None
        prefixes = self._planner.shared_prefixes(layout)
        for plan in self._native.values():
            plan.make(layout, take, prefixes)

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        slots = self._slots
        assert slots is not None, "plan() comes before run()"
        config, spec, rule = self.config, self.config.layers[layer], self._rules[layer]
        k_buffer, v_buffer = kv
        num_rows, num_heads, head_dim = q.shape
        num_kv_heads, v_head_dim = config.num_kv_heads, spec.v_head_dim
        q = _heads_together(q)
        key = value = None
        k_stride = v_stride = 0
        if k is not None and v is not None:
            k, v = _heads_together(k), _heads_together(v)
            key, value, k_stride, v_stride = k.data_ptr(), v.data_ptr(), k.stride(0), v.stride(0)
        if sinks is not None:
            sinks = sinks.to(q.dtype)
        out = q.new_empty((num_rows, num_heads, v_head_dim))
        native = self._native[rule]
        failed = self._kernels.attention(
            native.pointer, q.data_ptr(), key, value, None if sinks is None else sinks.data_ptr(),
            k_buffer.data_ptr(), v_buffer.data_ptr(), out.data_ptr(), slots.data_ptr(),
            q.stride(0), k_stride, v_stride, num_rows, num_heads, num_kv_heads, head_dim, v_head_dim,
            self._element, spec.scale, spec.softcap or 0.0,
        )  # fmt: skip
        if failed:
            raise EngineError("no memory is left for the attention of a step")
        if native.num_tokens < num_rows:
            out[native.num_tokens :] = 0  # padding rows: defined, and never read
        prefills: StepPlan | None = self._plans.get(rule)
        if prefills is not None:
            if k is None or v is None:  # stored by a fused op: read this step's tokens back
                k = k_buffer.index_select(0, slots).view(num_rows, num_kv_heads, -1)
                v = v_buffer.index_select(0, slots).view(num_rows, num_kv_heads, -1)
            prefill_rows(q, k, v, k_buffer, v_buffer, out, prefills, spec, num_kv_heads, sinks)
        return out


def _heads_together(x: torch.Tensor) -> torch.Tensor:
    """x [T, H, D] with the heads of a token next to each other; tokens may lie apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


class _Plan:
    """The kernel's plan of one rule, made anew each step in memory that it keeps."""

    def __init__(self, library: Kernels, config: AttentionConfig, rule: Rule) -> None:
        self._library = library
        self._heads = (config.num_heads, config.num_kv_heads)
        self._shares = rule.window is None
        self.pointer: int = library.plan_new(config.page_size, rule.window or 0)
        if not self.pointer:
            raise EngineError("no memory is left for a plan of attention")
        self.num_tokens = 0
        weakref.finalize(self, library.plan_free, self.pointer)

    def make(self, layout: BatchLayout, take: np.ndarray | None, prefixes: list[tuple[np.ndarray, int]]) -> None:
        """take [N] uint8: sequences that are the kernel's, None for all. prefixes: (sequences, tokens in common)."""
        table = np.ascontiguousarray(layout.page_table, dtype=np.int32)
        first_rows = np.ascontiguousarray(layout.cu_q_lens, dtype=np.int32)
        lengths = np.ascontiguousarray(layout.seq_lens, dtype=np.int32)
        prefix_of = tokens = None
        if prefixes and self._shares:
            prefix_of = np.full(layout.num_seqs, -1, np.int32)
            for number, (members, _) in enumerate(prefixes):
                prefix_of[members] = number
            tokens = np.array([count for _, count in prefixes], np.int32)
        failed = self._library.plan(
            self.pointer, table.ctypes.data, table.shape[1], layout.num_seqs,
            first_rows.ctypes.data, lengths.ctypes.data, None if take is None else take.ctypes.data,
            None if prefix_of is None else prefix_of.ctypes.data, None if tokens is None else tokens.ctypes.data,
            0 if tokens is None else len(tokens), *self._heads,
        )  # fmt: skip
        if failed:
            raise EngineError("no memory is left for a plan of attention")
        self.num_tokens = layout.num_tokens
