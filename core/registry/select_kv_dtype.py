"""Which type the KV cache has: what the operator asks for, else what the checkpoint does, else the compute type. And
where the scales of one of eight bits come from."""

from __future__ import annotations

from typing import Any

from core.interfaces.attention import KV_DTYPES
from core.interfaces.errors import CoreError, PluginLoadError
from core.interfaces.quant import QuantMethod
from core.registry.resolution import Choice, Decision

NAME = "KV cache dtype"
SCALES = "KV cache scales"
COMPUTE_TYPE = "auto"
_ALIASES = {"fp8": "fp8_e4m3"}


def asked_kv_dtype(asked: str, dtype: str) -> str:
    """As attention plugins name it; COMPUTE_TYPE where it is the one that is computed in."""
    name = _ALIASES.get(asked, asked)
    return COMPUTE_TYPE if name == dtype else name


def wished_kv_dtype(quant: Choice, make: Any) -> str:
    """What the checkpoint asks for, COMPUTE_TYPE if nothing. make: constructs the method; not called for a class that
    asks for nothing. Raises PluginLoadError if that fails."""
    if getattr(quant.target, "kv_cache_dtype", QuantMethod.kv_cache_dtype) is QuantMethod.kv_cache_dtype:
        return COMPUTE_TYPE
    try:
        wish = make().kv_cache_dtype()
    except CoreError:
        raise
    except Exception as exc:
        title = quant.record.title if quant.record is not None else quant.name
        raise PluginLoadError(
            f"{title} could not be set up: {type(exc).__name__}: {exc}",
            hint="choose another method with --quantization",
        ) from exc
    return _ALIASES.get(wish, wish) if wish else COMPUTE_TYPE


def is_known(name: str) -> bool:
    """Whether core has a type of that name."""
    return name == COMPUTE_TYPE or name in KV_DTYPES


def decided(name: str, dtype: str, reason: str) -> Decision:
    return Decision(NAME, dtype if name == COMPUTE_TYPE else name, reason)


def has_scales(kv_dtype: str) -> bool:
    """Whether a cache of that type has scales: those of eight bits."""
    return KV_DTYPES.get(kv_dtype, "").startswith("float8")


def scales_decision(kv_dtype: str, file: str | None, quant: Choice) -> Decision | None:
    """The line of `explain`; None for a cache without scales. Whether the checkpoint really has some shows when it is
    loaded, and is logged then."""
    if not has_scales(kv_dtype):
        return None
    if file is not None:
        return Decision(SCALES, file, "asked for")
    if getattr(quant.target, "kv_scales", QuantMethod.kv_scales) is QuantMethod.kv_scales:
        return Decision(SCALES, "none", f"quantization {quant.name!r} reads none; see --kv-scales-file")
    return Decision(SCALES, "the checkpoint's", "where it has them; layers without are kept unscaled")
