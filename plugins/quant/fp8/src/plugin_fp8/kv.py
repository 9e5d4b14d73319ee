"""The 8-bit KV cache that a checkpoint was made for: whether its quantization_config wishes for one, and what its
scales are called. Imports no torch.

Scales are those of e4m3fn, whose largest number is 448. None of core's caches is of a "fnuz" type, whose numbers mean
half as much, so nothing is ever doubled.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from core.interfaces.errors import CheckpointError

DTYPE = "fp8_e4m3"
TENSOR, HEAD = "tensor", "attn_head"
_WAY_OUT = "take kv_cache_scheme out of config.json: the cache is kept in the compute type then"

_LAYER = r"(?:[A-Za-z_]\w*\.)+(?P<layer>[0-9]+)\.(?:[A-Za-z_]\w*\.)+"
# At the attention module (compressed-tensors; an `attn` inside it, others), at the projections (ModelOpt), at the
# projections as scales of their outputs (AutoFP8, older llm-compressor), and one for both (the first AutoFP8).
SCALES: Mapping[str, str] = MappingProxyType({
    _LAYER + "k_scale": "k",
    _LAYER + "v_scale": "v",
    _LAYER + "kv_scale": "kv",
    _LAYER + r"k_proj\.output_scale": "k",
    _LAYER + r"v_proj\.output_scale": "v",
})  # fmt: skip
LEFT_OUT: Mapping[str, str] = MappingProxyType({
    r".*\.(q|prob)_scale|.*\.q_proj\.output_scale|.*\.prob_output_scale":
        "attention computes with queries and probabilities as they are",
    r".*\.[qkv]_zero_point": "symmetric schemes have no zero point but zero",
})  # fmt: skip


def wishes(config: Mapping[str, Any]) -> bool:
    """Whether keys and values are to be kept in e4m3. Raises CheckpointError for a scheme that cannot be served."""
    names = ("kv_cache_scheme", "kv_cache_quant_algo", "kv_cache_quant_method")
    field = next((name for name in names if config.get(name) is not None), None)
    if field is None:
        return False
    scheme = config[field]
    if isinstance(scheme, str):  # "static" by AutoFP8, "FP8" by ModelOpt
        if scheme.lower() not in ("static", "fp8"):
            raise bad(field, scheme, "but only static scales of 8-bit floating point are known", _WAY_OUT)
        return True
    if not isinstance(scheme, Mapping) or (scheme.get("type"), scheme.get("num_bits")) != ("float", 8):
        raise bad(field, scheme, "but only 8-bit floating point is known", _WAY_OUT)
    if scheme.get("dynamic"):
        raise bad(f"{field}.dynamic", scheme["dynamic"], "but scales must be known when a model is loaded", _WAY_OUT)
    if scheme.get("symmetric") is False:
        raise bad(f"{field}.symmetric", False, "but keys and values are scaled without a zero point", _WAY_OUT)
    if (strategy := scheme.get("strategy") or TENSOR) not in (TENSOR, HEAD):
        raise bad(f"{field}.strategy", strategy, f"but it must be {TENSOR} or {HEAD}", _WAY_OUT)
    return True


def only_attention(group: Any) -> bool:
    """Whether a group of compressed-tensors is of attention itself, not of layers with weights."""
    return isinstance(group, Mapping) and group.get("weights") is None and group.get("input_activations") is not None


def bad(name: str, value: Any, why: str, hint: str) -> CheckpointError:
    """The error for a field of quantization_config."""
    return CheckpointError(f"config.json: quantization_config.{name} = {value!r}, {why}", hint=hint)
