"""Which layout is in effect: from the checkpoint's `quantization_config` or from the settings. Imports no torch."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.interfaces.errors import ConfigError
from core.layers.skip import skips
from plugin_fp8 import kv
from plugin_fp8.kv import bad as _bad
from plugin_fp8.settings import Options

FP8, COMPRESSED, MODELOPT = "fp8", "compressed-tensors", "modelopt"
TENSOR, CHANNEL, BLOCK, NOTHING = "tensor", "channel", "block", "nothing"
# What compressed-tensors calls files whose weights are plain e4m3 tensors, or are not quantized.
_PLAIN_FILES = (None, "float-quantized", "naive-quantized")
_DENSE_FILES = (*_PLAIN_FILES, "dense")
_REGEX = "re:"
# What ModelOpt calls its formats of 8-bit floats -> what has a scale of its own, whether that of inputs is known.
_ALGORITHMS = {"FP8": (TENSOR, True), "FP8_PER_CHANNEL_PER_TOKEN": (CHANNEL, False)}


@dataclass(frozen=True, slots=True)
class Format:
    """What is in effect.

    weights: what has a scale of its own: "tensor", "channel" (a row) or "block"; "nothing": no layer is quantized, only
    the KV cache. block: rows and columns of one.
    static: the checkpoint gives the scale of a layer's inputs; else each token's (for "block": each run of as many
    columns as a block has) is measured. prequantized: the checkpoint holds quantized tensors; else they are made while
    loading. scale, input_scale: suffixes of a module's scales. skip: modules left out; "re:" begins a regular
    expression over a module's whole name. field: where that list stands. kv_cache: whether the checkpoint wishes for
    keys and values in 8 bits.
    """

    weights: str
    block: tuple[int, int] = (128, 128)
    static: bool = False
    prequantized: bool = True
    scale: str = "weight_scale"
    input_scale: str = "input_scale"
    skip: tuple[str, ...] = ()
    field: str = ""
    kv_cache: bool = False

    def leaves_out(self, path: str, sources: Sequence[str]) -> bool:
        """Whether the layer at `path` is in the list. Raises ConfigError if only some of its sources are."""
        if self.weights == NOTHING:
            return True
        patterns = [entry.removeprefix(_REGEX) for entry in self.skip if entry.startswith(_REGEX)]
        matched = [name for name in sources if any(re.match(pattern, name) for pattern in patterns)]
        names = [entry for entry in self.skip if not entry.startswith(_REGEX)]
        return skips([*names, *matched], path, sources, field=self.field)


def recognises(config: Mapping[str, Any] | None) -> bool:
    """Whether a quantization_config is of 8-bit floating point weights, or of an 8-bit KV cache beside weights that are
    not quantized."""
    if config is None:
        return False
    if _by_modelopt(config):
        return str(_modelopt_part(config).get("quant_algo")).upper() in _ALGORITHMS
    if config.get("quant_method") != COMPRESSED:
        return config.get("quant_method") == FP8
    groups = _groups(config)
    kinds = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
    if any(isinstance(w, Mapping) and (w.get("type"), w.get("num_bits")) == ("float", 8) for w in kinds):
        return True
    return all(kv.only_attention(group) for group in groups.values()) and (
        bool(groups) or config.get("kv_cache_scheme") is not None
    )


def _groups(config: Mapping[str, Any]) -> Mapping[str, Any]:
    groups = config.get("config_groups")
    return groups if isinstance(groups, Mapping) else {}


def _by_modelopt(config: Mapping[str, Any]) -> bool:
    return MODELOPT in (config.get("quant_method"), config.get("quant_library"))


def _modelopt_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Older exports keep all of it one level deeper."""
    inner = config.get("quantization")
    return inner if isinstance(inner, Mapping) else config


def read(config: Mapping[str, Any] | None, options: Options) -> Format:
    """Raises CheckpointError for a quantization_config that cannot be served, ConfigError for settings that do not
    fit it."""
    if config is None:
        return Format(CHANNEL, prequantized=False, skip=options.skip, field="plugins.fp8.skip")
    if "skip" in options.model_fields_set:
        raise ConfigError(
            f"fp8.skip is {options.skip!r}, but the checkpoint is quantized already and states its own",
            field="plugins.fp8.skip",
            value=options.skip,
            hint="leave it out, or take the unquantized checkpoint",
        )
    if _by_modelopt(config):
        return _modelopt(_modelopt_part(config))
    return _compressed(config) if config.get("quant_method") == COMPRESSED else _plain(config)


def _plain(config: Mapping[str, Any]) -> Format:
    """quant_method fp8: blocks as DeepSeek and Qwen publish them, else one scale a tensor."""
    scheme = config.get("activation_scheme") or "dynamic"
    if scheme not in ("dynamic", "static"):
        raise _bad("activation_scheme", scheme, "but it must be dynamic or static", "correct config.json")
    for name, wanted in (("fmt", ("e4m3", "float8_e4m3fn")), ("expert_dtype", ("fp8",))):
        if (value := config.get(name)) is not None and value not in wanted:
            raise _bad(name, value, f"but only {wanted[0]} weights are served", "take the checkpoint in another format")
    name = "modules_to_not_convert" if config.get("modules_to_not_convert") is not None else "ignored_layers"
    found = Format(
        TENSOR,
        static=scheme == "static",
        skip=_names(config, name),
        field=f"quantization_config.{name}",
        kv_cache=kv.wishes(config),
    )
    block = config.get("weight_block_size")
    if block is None:
        return found
    if found.static:
        raise _bad("activation_scheme", "static", "but blocks have inputs that are measured", "correct config.json")
    return replace(found, weights=BLOCK, block=_block(block, "weight_block_size"), scale="weight_scale_inv")


def _modelopt(config: Mapping[str, Any]) -> Format:
    """As NVIDIA's ModelOpt exports them."""
    algorithm = str(config.get("quant_algo")).upper()
    if algorithm not in _ALGORITHMS:
        known = " or ".join(_ALGORITHMS)
        raise _bad("quant_algo", config.get("quant_algo"), f"but it must be {known}", "another plugin may read it")
    weights, static = _ALGORITHMS[algorithm]
    name = "ignore" if config.get("ignore") is not None else "exclude_modules"
    # Names with * and ?, as of files.
    skip = tuple(
        _REGEX + fnmatch.translate(entry) if set(entry) & set("*?[") and not entry.startswith(_REGEX) else entry
        for entry in _names(config, name)
    )
    return Format(weights, static=static, skip=skip, field=f"quantization_config.{name}", kv_cache=kv.wishes(config))


def _compressed(config: Mapping[str, Any]) -> Format:
    """quant_method compressed-tensors."""
    groups = {name: group for name, group in _groups(config).items() if not kv.only_attention(group)}
    known = _PLAIN_FILES if groups else _DENSE_FILES
    if (files := config.get("format")) not in known:
        raise _bad("format", files, "but weights must be stored as they are", "save it as float-quantized")
    wish = kv.wishes(config)
    for name, group in _groups(config).items():
        if name not in groups:  # attention in 8 bits: its keys and values are cached so, its queries left as they are
            wish |= kv.wishes({"kv_cache_scheme": group["input_activations"]})
    if not groups:
        return Format(NOTHING, kv_cache=wish)
    formats = {name: _group(name, group) for name, group in groups.items()}
    first, *others = formats.items()
    for name, other in others:
        if other != first[1]:
            raise _bad(
                f"config_groups.{name}", f"{other.weights}, {'static' if other.static else 'dynamic'}",
                f"which is not as {first[0]} is", "one scheme for all groups is served",
            )  # fmt: skip
    return replace(first[1], skip=_names(config, "ignore"), field="quantization_config.ignore", kv_cache=wish)


def _group(name: str, group: Mapping[str, Any]) -> Format:
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    where = f"config_groups.{name}"
    kind = (weights.get("type"), weights.get("num_bits"), weights.get("symmetric", True))
    if kind != ("float", 8, True):
        raise _bad(f"{where}.weights", kind, "but weights must be symmetric 8-bit floats", "another plugin may read it")
    strategy = weights.get("strategy") or TENSOR
    if strategy not in (TENSOR, CHANNEL, BLOCK):
        raise _bad(f"{where}.weights.strategy", strategy, "but it must be tensor, channel or block", "quantize it so")
    if inputs is None:
        raise _bad(
            f"{where}.input_activations", None, "but weights alone in 8 bits are not served",
            "quantize the activations too, dynamically",
        )  # fmt: skip
    if (inputs.get("type"), inputs.get("num_bits")) != ("float", 8):
        raise _bad(f"{where}.input_activations", dict(inputs), "but they must be 8-bit floats", "quantize it so")
    static = not inputs.get("dynamic", False)
    if static and (inputs.get("strategy") or TENSOR) != TENSOR:
        raise _bad(
            f"{where}.input_activations.strategy", inputs["strategy"], "but known scales are one for a tensor",
            "quantize the activations dynamically",
        )  # fmt: skip
    if static and strategy == BLOCK:
        raise _bad(f"{where}.input_activations.dynamic", False, "but blocks have inputs that are measured", "set it")
    block = _block(weights.get("block_structure") or (128, 128), f"{where}.weights.block_structure")
    return Format(strategy, block=block, static=static)


def _block(value: Any, name: str) -> tuple[int, int]:
    good = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if not good or not all(isinstance(size, int) and size > 0 for size in value):
        raise _bad(name, value, "but it must be two sizes", "for example [128, 128]")
    return value[0], value[1]


def _names(config: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = config.get(name)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        raise _bad(name, value, "but it must be a list of module names", 'for example ["lm_head"]')
    for entry in value:
        if entry.startswith(_REGEX):
            try:
                re.compile(entry.removeprefix(_REGEX))
            except re.error as error:
                raise _bad(name, entry, f"which is no regular expression: {error}", "correct config.json") from error
    return tuple(value)
