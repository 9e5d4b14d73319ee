"""Every operation's kernels compile for every GPU, in the forms that layers and the sampler call them in.

Operations run as ever, on tensors without memory, and what they would launch is compiled instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cross_compile import TARGETS, cross_compile

from core.interfaces.context import PluginContext
from plugin_triton import dependent, launch
from plugin_triton.ops import activation, best, configs, linear, logits, norm, quantize, rope, routing, rows, threshold
from plugin_triton.ops.configs import Config
from plugin_triton.ops.table import TritonOps

MODULES = (activation, best, linear, logits, norm, quantize, rope, routing, rows, threshold)
TYPES = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64",
    torch.int32: "*i32", torch.int64: "*i64", torch.int8: "*i8", torch.float8_e4m3fn: "*fp8e4nv",
}  # fmt: skip
BF16 = torch.bfloat16


def made(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype)


def qkv_calls(ops: Any) -> Iterator[Callable[[], Any]]:
    """Llama, Qwen (head norms), GLM (a part of the head is turned, neighbours), latent attention, with and without
    the store."""
    for heads, dim, turned, weight, extra in (
        ((32, 8, 8), 128, 128, None, {}),
        ((32, 4, 4), 128, 128, made(128), {}),
        ((96, 8, 8), 128, 64, made(128), {"interleaved": True}),
        ((4, 2, 2), 80, 40, None, {}),
    ):
        table = made(64, turned, dtype=torch.float32)
        positions = made(3, dtype=torch.int64)
        args = (made(3, sum(heads), dim), heads, weight, weight, 1e-6, table, positions)
        yield lambda args=args, extra=extra: ops["qk_norm_rope"](*args, **extra)
        for slots in (made(3, dtype=torch.int64), made(3, dtype=torch.int32)):
            caches = (made(64, heads[1], dim), made(64, heads[1], dim))
            yield lambda args=args, extra=extra, rest=(*caches, slots): ops["qk_norm_rope_store"](*args, *rest, **extra)
        q, k, _ = args[0].split(heads, 1)
        yield lambda args=(q, k, table, positions), extra=extra: ops["rope"](*args, **extra)
    latent = made(3, 20, 64), made(3, 576)[:, 512:].unsqueeze(1), made(64, 64, dtype=torch.float32)
    yield lambda: ops["rope"](*latent, made(3, dtype=torch.int64), interleaved=True)


def product_calls(ops: Any) -> Iterator[Callable[[], Any]]:
    residual, weight, norm_weight, bias = made(1, 4096), made(1024, 4096), made(4096), made(1024)
    x = made(1, 4096)
    yield lambda: ops["linear"](x, weight)
    yield lambda: ops["linear"](x, weight, bias)
    yield lambda: ops["linear"](x.float(), weight.float())
    yield lambda: ops["linear"](made(5, 4096), weight, bias)
    for around in (
        {"residual": residual, "norm_weight": norm_weight},
        {"norm_weight": norm_weight},
        {"residual": residual, "norm_weight": norm_weight, "keep_normed": True},
        {"norm_weight": norm_weight, "keep_normed": True},
        {"residual": residual, "norm_weight": norm_weight, "activation": "silu"},
        {"norm_weight": norm_weight, "activation": "gelu_tanh"},
        {"activation": "gelu"},
    ):
        yield lambda around=around: ops["fused_linear"](x, weight, bias, **around)
    yield lambda: ops["fused_linear"](made(5, 4096), weight, None, activation="silu")
    yield lambda: ops["linear"](made(1, 2880), made(37, 2880))


def row_calls(ops: Any) -> Iterator[Callable[[], Any]]:
    for dtype in (BF16, torch.float16, torch.float32):
        x, weight = made(3, 4096, dtype=dtype), made(4096, dtype=dtype)
        yield lambda x=x, weight=weight: ops["rms_norm"](x, weight, 1e-6)
        yield lambda x=x, weight=weight: ops["add_rms_norm"](x, x, weight, 1e-6)
        yield lambda x=x: ops["silu_and_mul"](x)
    yield lambda: ops["rms_norm"](made(3, 576)[:, :512], made(512), 1e-6)
    yield lambda: ops["qk_norm"](made(3, 48, 128)[:, :32], made(128), 1e-6)
    yield lambda: ops["add_rms_norm"](made(3, 20000), made(3, 20000), made(20000), 1e-6)
    yield lambda: ops["gelu_and_mul"](made(3, 8192), "tanh")
    yield lambda: ops["gelu_and_mul"](made(3, 8192))
    yield lambda: ops["embedding"](made(3, dtype=torch.int64), made(100, 4096))
    for slots in (made(3, dtype=torch.int64), made(3, dtype=torch.int32)):
        args = (made(3, 8, 128), made(3, 8, 128), made(64, 8, 128), made(64, 8, 128), slots)
        yield lambda args=args: ops["store_kv"](*args)
    yield lambda: ops["topk_softmax"](made(3, 128), 8, True)
    yield lambda: ops["topk_softmax"](made(3, 64), 6, False)
    how = {"renormalize": True, "num_groups": 8, "topk_groups": 4, "scale": 2.5}
    scores = made(3, 256, dtype=torch.float32)
    yield lambda: ops["route_topk"](scores, made(256, dtype=torch.float32), 8, scoring="sigmoid", **how)
    yield lambda: ops["route_topk"](scores, None, 8, scoring="softmax", group_score="max", **how)


def sampler_calls(ops: Any) -> Iterator[Callable[[], Any]]:
    for num in (1, 300):
        for dtype in (BF16, torch.float32):
            yield lambda num=num, dtype=dtype: ops["best_token"](made(num, 128256, dtype=dtype))
        x, spread, keys = made(num, 5000, dtype=torch.float32), made(5000, dtype=torch.int32), made(num, 2)
        yield lambda x=x, spread=spread, keys=keys.int(): ops["gumbel_argmax"](x, spread, keys)
    x, f = made(3, 128256, dtype=torch.float32), made(3, dtype=torch.float32)
    for max_k, without_k, top_p in (
        (20, False, True), (20, False, False), (1000, True, True), (1000, False, True), (1000, False, False),
        (0, True, True), (0, True, False),
    ):  # fmt: skip
        known = {"max_k": max_k, "any_without_k": without_k, "any_top_p": top_p}
        top_k = made(3, dtype=torch.int64)
        yield lambda top_k=top_k, known=known: ops["sampling_threshold"](x, top_k, f.double(), f, **known)
    yield lambda: ops["penalize"](x, x.int(), x.bool(), f, f, f)
    yield lambda: ops["mask_tokens"](x, made(3, 4008, dtype=torch.int32))
    yield lambda: ops["token_logprobs"](made(3, 128256), made(3, dtype=torch.int64), 0)


def quantize_calls(ops: Any) -> Iterator[Callable[[], Any]]:
    for num in (1, 64):
        x = made(num, 4096)
        yield lambda x=x: ops["quantize_fp8_token"](x)
        yield lambda x=x: ops["quantize_fp8_group"](x)
        yield lambda x=x: ops["quantize_fp8_tensor"](x)
    yield lambda: ops["quantize_fp8_token"](made(3, 20000))
    yield lambda: ops["quantize_fp8_tensor"](made(3, 4096), made(1, dtype=torch.float32))


CALLS = {
    "products": product_calls, "heads": qkv_calls, "rows": row_calls, "sampler": sampler_calls,
    "quantization": quantize_calls,
}  # fmt: skip


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The names of kernels that were compiled, while launches compile."""
    target: str = request.getfixturevalue("target")
    done: list[str] = []

    def compile_instead(self: launch.Launch, device: int, x: int, y: int, z: int, *args: Any) -> None:
        values: dict[str, Any] = dict(zip(self.kernel.arg_names, (*args, *self.constants), strict=True))
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = TYPES[value.dtype]
            elif name not in self._keywords and isinstance(value, (int, float)):
                values[name] = "i32" if isinstance(value, int) else "fp32"
        # All forms for one target; for the others each kernel once.
        if target != "sm_90" and self.kernel.__name__ in done:
            done.append(self.kernel.__name__)
            return
        options = {key: value for key, value in self._keywords.items() if key not in self.kernel.arg_names}
        cross_compile(self.kernel, values, target, **options)
        done.append(self.kernel.__name__)

    monkeypatch.setattr(launch.Launch, "_through_triton", compile_instead)
    nvidia = target.startswith("sm_")
    for module in MODULES:
        monkeypatch.setattr(module, "dependent", lambda device: nvidia, raising=False)
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
    few = {
        "1024x4096": {8: Config("skinny", 64, 128, 4, 4, 4, 2)},
        "512x4096 gated": {8: Config("skinny", 64, 64, 4, 2, 3, 1)},
    }
    monkeypatch.setattr(configs, "_measured", lambda device: few)
    configs.choose.cache_clear()
    yield done
    for module in (*MODULES, configs, dependent):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("group", CALLS)
def test_it_compiles(group: str, target: str, compiled: list[str]) -> None:
    if group == "quantization" and target == "gfx942":
        pytest.skip("gfx942 has 8-bit floats of its own; core's references serve there")
    ops = TritonOps(PluginContext()).ops()
    for call in CALLS[group](ops):
        before = len(compiled)
        call()
        assert len(compiled) > before, "nothing was launched"
