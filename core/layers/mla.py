"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1)."""

from __future__ import annotations

import torch

from core.interfaces.attention import MlaWeights
from core.interfaces.batch import ForwardBatch
from core.interfaces.build import BuildContext
from core.interfaces.spec import LayerSpec
from core.layers.linear import MergedLinear, ReplicatedLinear, RowLinear, shard
from core.layers.module import Layer, after_norm
from core.layers.norm import RmsNorm
from core.layers.rope import Rope


class LatentUpProjection(MergedLinear):
    """The projection from latents to keys and values, in the form that attention backends take: `weights`, made dense
    when loading ends, whatever the quantization method stored. It is never applied, so nothing else is kept.

    The checkpoint's rows are, head by head, nope_dim of the key and v_dim of the value. num_heads: of this rank.
    """

    weights: MlaWeights

    def __init__(self, path: str, rank: int, num_heads: int, nope_dim: int, v_dim: int, ctx: BuildContext) -> None:
        super().__init__(path, rank, {"": num_heads * ctx.tp.size * (nope_dim + v_dim)}, ctx, bias=False)
        self.num_heads = num_heads
        self.nope_dim = nope_dim
        self.dtype, self.device = ctx.dtype, ctx.device

    def finish(self) -> None:
        before = set(self.__dict__)
        super().finish()
        dense = self.method.dense(self, self.shape, self.dtype, self.device).unflatten(0, (self.num_heads, -1))
        for name in set(self.__dict__) - before:  # what the method keeps to be applied with
            del self.__dict__[name]
        for name in list(self._parameters):
            self._parameters[name] = None
        for name in list(self._buffers):
            self._buffers[name] = None
        key, value = dense[:, : self.nope_dim].clone(), dense[:, self.nope_dim :].clone()
        self.__dict__["weights"] = MlaWeights(key.contiguous(), value.contiguous())


class MlaAttention(Layer):
    """Queries straight from x or through a narrow normed projection, one latent and one rotated key a token, attention,
    output projection. x [T, hidden_size] -> [T, hidden_size]. Heads are split over the ranks; what leads to the latent
    is whole on each.

    spec.attention: with latent_dim and rope_dim. rope: of rope_dim dims. q_lora_rank: width of the narrow query
    projection, or None. norm_eps: of the norms of query and latent. bias: of the projections into narrow query and
    latent, and of the output.
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
        q_lora_rank: int | None,
        norm_eps: float = 1e-6,
        bias: bool = False,
    ) -> None:
        super().__init__()
        rule = spec.attention
        assert rule is not None
        assert rule.latent_dim
        num_heads = shard(rule.num_heads, ctx.tp, "num_attention_heads")
        self.latent_dim, self.rope_dim = rule.latent_dim, rule.rope_dim
        self.head_dim, self.nope_dim = rule.head_dim, rule.head_dim - rule.rope_dim
        self.q_rank = q_lora_rank or 0
        q_rows, kv_rows = {"": rule.num_heads * rule.head_dim}, rule.latent_dim + rule.rope_dim
        linear, column = ctx.layer(ReplicatedLinear), ctx.layer(MergedLinear)
        if q_lora_rank is None:
            self.kv_a_proj = linear(f"{path}.kv_a_proj", hidden_size, kv_rows, ctx, bias=bias)
            self.q_proj = column(f"{path}.q_proj", hidden_size, q_rows, ctx, bias=False)
        else:
            parts = {"q_a": q_lora_rank, "kv_a": kv_rows}
            self.qkv_a_proj = linear(f"{path}.qkv_a_proj", hidden_size, parts, ctx, bias=bias)
            self.q_a_layernorm = ctx.layer(RmsNorm)(f"{path}.q_a_layernorm", q_lora_rank, norm_eps, ctx)
            self.q_b_proj = column(f"{path}.q_b_proj", q_lora_rank, q_rows, ctx, bias=False)
        self.kv_a_layernorm = ctx.layer(RmsNorm)(f"{path}.kv_a_layernorm", rule.latent_dim, norm_eps, ctx)
        self.kv_b_proj = ctx.layer(LatentUpProjection)(
            f"{path}.kv_b_proj", rule.latent_dim, num_heads, self.nope_dim, rule.v_head_dim, ctx
        )
        self.o_proj = ctx.layer(RowLinear)(
            f"{path}.o_proj", rule.num_heads * rule.v_head_dim, hidden_size, ctx, bias=bias
        )
        self.rope = rope
        self.layer, self.group = layer, spec.cache_group

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        if self.q_rank:
            return self._attend(*self._narrow(self.qkv_a_proj(x)), batch)
        return self._attend(self.q_proj(x), self.kv_a_proj(x), batch)

    def after_norm(
        self, norm: RmsNorm, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        fused = self.qkv_a_proj.fused if self.q_rank else None
        if fused is None:
            return after_norm(self, norm, x, residual, batch)
        both, total, _ = fused(x, residual=residual, norm_weight=norm.kernel_weight, eps=norm.eps)
        assert total is not None
        return self._attend(*self._narrow(both), batch), total

    def _narrow(self, both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries, and latent with key, out of the joint projection."""
        narrow, kv = both.split((self.q_rank, self.latent_dim + self.rope_dim), -1)
        norm, fused = self.q_a_layernorm, self.q_b_proj.fused
        if fused is None:
            return self.q_b_proj(norm(narrow)), kv
        return fused(narrow, norm_weight=norm.kernel_weight, eps=norm.eps)[0], kv

    def _attend(self, q: torch.Tensor, kv: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        q_nope, q_rope = q.view(q.shape[0], -1, self.head_dim).split((self.nope_dim, self.rope_dim), -1)
        latent, k_rope = kv.split((self.latent_dim, self.rope_dim), -1)
        latent = self.kv_a_layernorm(latent)
        q_rope, k_rope = self.rope(q_rope, k_rope.unsqueeze(1), batch.positions)
        out = batch.attention[self.group].run_mla(
            q_nope, q_rope, latent, k_rope.squeeze(1), self.kv_b_proj.weights, self.layer, batch.kv[self.layer]
        )
        return self.o_proj(out.flatten(1))
