"""Attention over the paged KV cache, and the self-attention block around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from core.interfaces.attention import TokenRows
from core.interfaces.batch import ForwardBatch
from core.interfaces.build import BuildContext
from core.interfaces.spec import LayerSpec
from core.layers.linear import QkvLinear, RowLinear
from core.layers.module import Layer, after_norm
from core.layers.norm import RmsNorm
from core.layers.rope import Rope
from core.ops.bind import bind
from core.ops.reference import REFERENCES


class Attention:
    """One layer's door to the attention backend of its cache group."""

    __slots__ = ("group", "layer")

    def __init__(self, layer: int, group: int) -> None:
        self.layer = layer
        self.group = group

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        batch: ForwardBatch,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """q [T, H, D], k [T, KV, D], v [T, KV, Dv] -> [T, H, Dv]; writes k and v to the cache. None for both where
        they were written to the `token_rows` before."""
        return batch.attention[self.group].run(q, k, v, self.layer, batch.kv[self.layer], sinks)

    def token_rows(self, batch: ForwardBatch) -> TokenRows | None:
        return batch.attention[self.group].token_rows(batch.kv[self.layer])


class SelfAttention(Layer):
    """Fused QKV projection, optional RMS norm of each query and key head, rotary embedding, attention, output
    projection. x [T, hidden_size] -> [T, hidden_size].

    qk_norm_eps: epsilon of the head norms; None leaves them out. qkv_bias, out_bias: of the projections.
    """

    def __init__(
        self,
        path: str,
        layer: int,
        spec: LayerSpec,
        hidden_size: int,
        rope: Rope,
        ctx: BuildContext,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        qk_norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        rule = spec.attention
        assert rule is not None
        assert rule.v_head_dim == rule.head_dim
        self.qkv_proj = ctx.layer(QkvLinear)(
            f"{path}.qkv_proj", hidden_size, rule.num_heads, rule.num_kv_heads, rule.head_dim, ctx, bias=qkv_bias
        )
        self.o_proj = ctx.layer(RowLinear)(
            f"{path}.o_proj", rule.num_heads * rule.head_dim, hidden_size, ctx, bias=out_bias
        )
        self.q_norm: RmsNorm | None = None
        self.k_norm: RmsNorm | None = None
        if qk_norm_eps is not None:
            self.q_norm = ctx.layer(RmsNorm)(f"{path}.q_norm", rule.head_dim, qk_norm_eps, ctx, op="qk_norm")
            self.k_norm = ctx.layer(RmsNorm)(f"{path}.k_norm", rule.head_dim, qk_norm_eps, ctx, op="qk_norm")
        self.rope = rope
        # One pass where the device has it; else the parts, each of which the device may have.
        self.norm_rope = _other(ctx, "qk_norm_rope")
        # The same with the store into the cache, for backends that leave it to others.
        self.norm_rope_store = _other(ctx, "qk_norm_rope_store")
        # Both with what never changes; made in the first step, when the weights are there.
        self._turn: Callable[..., Any] | None = None
        self._turn_and_store: Callable[..., Any] | None = None
        self.qk_norm_eps = qk_norm_eps or 0.0
        self.attention = Attention(layer, spec.cache_group)
        self.head_dim = rule.head_dim
        self.heads = (self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads, self.qkv_proj.num_kv_heads)
        self.num_slices = sum(self.heads)
        self.out_features = self.qkv_proj.num_heads * rule.head_dim

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        return self._attend(self.qkv_proj(x), batch)

    def after_norm(
        self, norm: RmsNorm, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        fused = self.qkv_proj.fused
        if fused is None:
            return after_norm(self, norm, x, residual, batch)
        qkv, total, _ = fused(x, residual=residual, norm_weight=norm.kernel_weight, eps=norm.eps)
        assert total is not None
        return self._attend(qkv, batch), total

    def _attend(self, qkv: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        qkv = qkv.view(-1, self.num_slices, self.head_dim)
        k: torch.Tensor | None
        v: torch.Tensor | None
        if self.norm_rope is not None:
            if self._turn is None:
                self._turn = self._bound(self.norm_rope)
                self._turn_and_store = None if self.norm_rope_store is None else self._bound(self.norm_rope_store)
            rows = None if self._turn_and_store is None else self.attention.token_rows(batch)
            if self._turn_and_store is not None and rows is not None:
                q, k, v = self._turn_and_store(qkv, batch.positions, *rows), None, None
            else:
                q, k, v = self._turn(qkv, batch.positions)
        else:
            q, k, v = qkv.split(self.heads, 1)
            if self.q_norm is not None and self.k_norm is not None:
                q, k = self.q_norm(q), self.k_norm(k)
            q, k = self.rope(q, k, batch.positions)
        out = self.attention(q, k, v, batch)
        return self.o_proj(out.reshape(-1, self.out_features))

    def _bound(self, op: Callable[..., Any]) -> Callable[..., Any]:
        """Of (qkv, positions, ...): one of the two operations for this layer."""
        q_weight = None if self.q_norm is None else self.q_norm.kernel_weight
        k_weight = None if self.k_norm is None else self.k_norm.kernel_weight
        heads, eps, table, turned = self.heads, self.qk_norm_eps, self.rope.table, {}
        if self.rope.interleaved:
            turned = {"interleaved": True}

        def plain(qkv: torch.Tensor, positions: torch.Tensor, *rows: torch.Tensor) -> Any:
            return op(qkv, heads, q_weight, k_weight, eps, table, positions, *rows, **turned)

        return bind(op, plain, heads=heads, q_weight=q_weight, k_weight=k_weight, eps=eps, cos_sin=table, **turned)


def _other(ctx: BuildContext, name: str) -> Callable[..., Any] | None:
    """The operation, if it is the device's own."""
    op = ctx.ops[name]
    return None if op is REFERENCES[name] else op
