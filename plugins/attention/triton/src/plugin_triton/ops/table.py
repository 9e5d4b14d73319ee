"""The table of operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from core.interfaces.context import PluginContext
from core.interfaces.ops import OpTable
from plugin_triton.ops import activation, best, linear, logits, norm, quantize, rope, routing, rows, threshold


class TritonOps(OpTable):
    """bfloat16, float16 and float32. Arguments that a kernel does not take go to core's references."""

    def __init__(self, ctx: PluginContext) -> None:
        super().__init__(ctx)
        if ctx.device is not None and ctx.device.type == "cuda":
            linear.arrivals(ctx.device)

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {
            "linear": linear.linear,
            "pack_linear_weight": linear.pack_linear_weight,
            "fused_linear": linear.fused_linear,
            "rms_norm": norm.rms_norm,
            "add_rms_norm": norm.add_rms_norm,
            "qk_norm": norm.rms_norm,
            "rope": rope.rope,
            "qk_norm_rope": rope.qk_norm_rope,
            "qk_norm_rope_store": rope.qk_norm_rope_store,
            "silu_and_mul": activation.silu_and_mul,
            "gelu_and_mul": activation.gelu_and_mul,
            "topk_softmax": routing.topk_softmax,
            "route_topk": routing.route_topk,
            "store_kv": rows.store_kv,
            "embedding": rows.embedding,
            "best_token": best.best_token,
            "gumbel_argmax": best.gumbel_argmax,
            "sampling_threshold": threshold.sampling_threshold,
            "penalize": logits.penalize,
            "mask_tokens": logits.mask_tokens,
            "token_logprobs": logits.token_logprobs,
            "quantize_fp8_tensor": quantize.quantize_fp8_tensor,
            "quantize_fp8_token": quantize.quantize_fp8_token,
            "quantize_fp8_group": quantize.quantize_fp8_group,
        }
