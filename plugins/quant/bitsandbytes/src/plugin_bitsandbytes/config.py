"""Which format is in effect: from the checkpoint's `quantization_config` or from the settings. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.interfaces.errors import CheckpointError, ConfigError
from plugin_bitsandbytes.settings import Options

METHOD = "bitsandbytes"
INT8 = "int8"
FOUR_BIT = ("nf4", "fp4")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DEFAULT_BLOCK_SIZE = 64
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
STORAGE_DTYPES = ("uint8", "int8", "float16", "bfloat16", "float32", "float64")
# What transformers leaves out where a checkpoint gives no list: the output embedding.
DEFAULT_SKIP = ("lm_head",)
_OF_CHECKPOINT = ("format", "nested", "blocksize", "threshold", "skip")


@dataclass(frozen=True, slots=True)
class Format:
    """What is in effect.

    kind: "nf4", "fp4" or "int8". prequantized: the checkpoint holds quantized tensors; else they are made while
    loading. nested, block_size: of what is made while loading. threshold: of int8's outlier columns. skip: modules
    left out. compute_dtype: a dtype's name, or None for the model's. fused: whether the CPU may repack.
    """

    kind: str
    prequantized: bool
    nested: bool
    block_size: int
    threshold: float
    skip: tuple[str, ...]
    compute_dtype: str | None
    fused: bool


def stated(config: Mapping[str, Any] | None) -> bool:
    """Whether a quantization_config is of this library. Checkpoints of 2023 name no method."""
    if config is None:
        return False
    method = config.get("quant_method")
    return method == METHOD or (method is None and True in (config.get("load_in_4bit"), config.get("load_in_8bit")))


def read(config: Mapping[str, Any] | None, options: Options) -> Format:
    """Raises CheckpointError for a quantization_config that cannot be served, ConfigError for settings that do not
    fit it."""
    return _from_options(options) if config is None else _from_checkpoint(config, options)


def _from_options(options: Options) -> Format:
    four_bit_only = {"nested", "blocksize", "compute_dtype", "fused"}
    wrong = four_bit_only if options.format == INT8 else {"threshold"}
    for name in sorted(wrong & options.model_fields_set):
        raise ConfigError(
            f"bitsandbytes.{name} is {getattr(options, name)!r}, which format {options.format!r} has no use for",
            field=f"plugins.bitsandbytes.{name}",
            value=getattr(options, name),
            hint=f"leave it out, or set bitsandbytes.format={'nf4' if options.format == INT8 else INT8}",
        )
    if options.compute_dtype == "checkpoint":
        raise ConfigError(
            "bitsandbytes.compute_dtype is 'checkpoint', but the checkpoint is not quantized and states none",
            field="plugins.bitsandbytes.compute_dtype",
            value="checkpoint",
            hint=f"choose model or one of {', '.join(COMPUTE_DTYPES)}",
        )
    return Format(
        kind=options.format,
        prequantized=False,
        nested=options.nested,
        block_size=options.blocksize,
        threshold=options.threshold,
        skip=options.skip,
        compute_dtype=None if options.compute_dtype == "model" else options.compute_dtype,
        fused=options.fused,
    )


def _from_checkpoint(config: Mapping[str, Any], options: Options) -> Format:
    for name in _OF_CHECKPOINT:
        if name in options.model_fields_set:
            raise ConfigError(
                f"bitsandbytes.{name} is {getattr(options, name)!r}, but the checkpoint is quantized already and "
                f"states its own",
                field=f"plugins.bitsandbytes.{name}",
                value=getattr(options, name),
                hint="leave it out, or take the unquantized checkpoint",
            )
    four, eight = _flag(config, "load_in_4bit"), _flag(config, "load_in_8bit")
    if four == eight:
        raise _bad("load_in_4bit", four, f"but load_in_8bit is {eight} too", "exactly one of them must be true")
    if _flag(config, "llm_int8_enable_fp32_cpu_offload"):
        raise _bad(
            "llm_int8_enable_fp32_cpu_offload", True, "but layers are not moved between devices here",
            "set it to false in config.json; every layer then stays on one device",
        )  # fmt: skip
    if _flag(config, "llm_int8_has_fp16_weight"):
        raise _bad(
            "llm_int8_has_fp16_weight", True, "but weights quantized anew in each step are for training",
            "save the checkpoint with llm_int8_has_fp16_weight=False",
        )  # fmt: skip
    kind = INT8 if eight else str(_get(config, "bnb_4bit_quant_type", "fp4"))
    if kind not in (INT8, *FOUR_BIT):
        raise _bad(
            "bnb_4bit_quant_type", kind, "which bitsandbytes does not have",
            f"known types: {', '.join(FOUR_BIT)}; quantize the checkpoint again with one of them",
        )  # fmt: skip
    storage = str(_get(config, "bnb_4bit_quant_storage", "uint8")).removeprefix("torch.")
    if storage not in STORAGE_DTYPES:
        raise _bad(
            "bnb_4bit_quant_storage", storage, "in which packed weights cannot be stored",
            f"known dtypes: {', '.join(STORAGE_DTYPES)}",
        )  # fmt: skip
    return Format(
        kind=kind,
        prequantized=True,
        nested=_flag(config, "bnb_4bit_use_double_quant"),
        block_size=DEFAULT_BLOCK_SIZE,
        threshold=_threshold(config),
        skip=_skip(config),
        compute_dtype=_compute_dtype(config, options, kind),
        fused=options.fused,
    )


def _compute_dtype(config: Mapping[str, Any], options: Options, kind: str) -> str | None:
    if options.compute_dtype == "model":
        return None
    if kind == INT8:
        raise ConfigError(
            f"bitsandbytes.compute_dtype is {options.compute_dtype!r}, but the checkpoint is int8, which computes in "
            "integers",
            field="plugins.bitsandbytes.compute_dtype",
            value=options.compute_dtype,
            hint="leave it out",
        )
    if options.compute_dtype != "checkpoint":
        return options.compute_dtype
    name = str(_get(config, "bnb_4bit_compute_dtype", "float32")).removeprefix("torch.")
    if name not in COMPUTE_DTYPES:
        raise _bad(
            "bnb_4bit_compute_dtype", name, "in which bitsandbytes cannot compute",
            f"set bitsandbytes.compute_dtype to one of {', '.join(COMPUTE_DTYPES)}",
        )  # fmt: skip
    return name


def _threshold(config: Mapping[str, Any]) -> float:
    value = _get(config, "llm_int8_threshold", 6.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise _bad("llm_int8_threshold", value, "but it must be a number of at least 0", "the usual one is 6.0")
    return float(value)


def _skip(config: Mapping[str, Any]) -> tuple[str, ...]:
    value = _get(config, "llm_int8_skip_modules", None)
    if value is None:
        return DEFAULT_SKIP
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        raise _bad("llm_int8_skip_modules", value, "but it must be a list of module names", 'for example ["lm_head"]')
    return tuple(value)


def _get(config: Mapping[str, Any], name: str, default: Any) -> Any:
    value = config.get(name)
    return default if value is None else value


def _flag(config: Mapping[str, Any], name: str) -> bool:
    """A boolean; transformers 4 wrote load_in_4bit and load_in_8bit with an underscore before them as well."""
    value = _get(config, name, config.get(f"_{name}"))
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _bad(name, value, "but it must be true or false", "correct config.json")
    return value


def _bad(name: str, value: Any, why: str, hint: str) -> CheckpointError:
    return CheckpointError(f"config.json: quantization_config.{name} = {value!r}, {why}", hint=hint)
