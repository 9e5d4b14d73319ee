"""The operator's file of scales of cached keys and values, in the schema that vLLM and SGLang read with
--quantization-param-path:

    {"model_type": "llama", "kv_cache": {"dtype": "float8_e4m3fn", "scaling_factor": {"0": {"0": 0.02, "1": 0.03}}}}

`scaling_factor` has a map for each tensor-parallel rank, from a layer's number to the scale of its keys and values. A
file of one rank serves any number of them: its scales are of whole layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.interfaces.errors import ConfigError
from core.interfaces.spec import ModelSpec

FIELD = "cache.kv_scales_file"
_DTYPE = "float8_e4m3fn"
ByLayer = dict[int, tuple[float, float]]


def read_kv_scales(path: str, spec: ModelSpec, model_type: Any, num_ranks: int) -> tuple[ByLayer, ...]:
    """Scales by layer, for each rank. model_type: of config.json. Raises ConfigError naming what is wrong where."""
    content = _read(path)
    cache = content.get("kv_cache")
    if not isinstance(cache, Mapping):
        raise _wrong(path, f'"kv_cache" is {cache!r}', "it must hold dtype and scaling_factor")
    stated = content.get("model_type")
    if stated is not None and model_type is not None and stated != model_type:
        raise _wrong(
            path, f'"model_type" is {stated!r}', f"the checkpoint's is {model_type!r}; take the model's own file"
        )
    if cache.get("dtype") != _DTYPE:
        raise _wrong(path, f'"kv_cache.dtype" is {cache.get("dtype")!r}', f"only scales for {_DTYPE} are known")
    ranks = cache.get("scaling_factor")
    if not isinstance(ranks, Mapping) or not ranks:
        raise _wrong(path, f'"kv_cache.scaling_factor" is {ranks!r}', "it must have a map of layers for each rank")
    names = [str(rank) for rank in range(len(ranks))]
    if sorted(ranks) != sorted(names):
        raise _wrong(path, f'"scaling_factor" has ranks {", ".join(ranks)}', f"they must be {', '.join(names)}")
    if len(ranks) not in (1, num_ranks):
        raise _wrong(
            path,
            f'"scaling_factor" is for {len(ranks)} ranks, and tensor_parallel_size is {num_ranks}',
            f"use --tensor-parallel-size {len(ranks)}, or a file of one rank, which serves any number",
        )
    read = tuple(_layers(path, rank, ranks[rank], spec) for rank in names)
    return read if len(read) == num_ranks else read * num_ranks


def _layers(path: str, rank: str, factors: Any, spec: ModelSpec) -> ByLayer:
    where = f'"scaling_factor.{rank}"'
    if not isinstance(factors, Mapping):
        raise _wrong(path, f"{where} is {factors!r}", "it must be a map from layers to scales")
    layers = {str(i) for i, layer in enumerate(spec.layers) if layer.attention is not None}
    if set(factors) != layers:
        lacks, odd = sorted(layers - set(factors), key=int), sorted(set(factors) - layers)
        what = f"lacks layers {', '.join(lacks)}" if lacks else f"has layers {', '.join(odd)}, which cache nothing"
        raise _wrong(path, f"{where} {what}", "take the model's own file")
    for layer, value in factors.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (math.isfinite(value) and value > 0):
            raise _wrong(path, f"{where}: layer {layer} is {value!r}", "a scale is a number greater than 0")
    return {int(layer): (float(value), float(value)) for layer, value in factors.items()}


def _read(path: str) -> Mapping[str, Any]:
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(path, f"it cannot be read: {error}", "give the path of a JSON file") from error
    except json.JSONDecodeError as error:
        raise _wrong(path, f"it is not JSON: {error}", "give the path of a JSON file") from error
    if not isinstance(content, Mapping):
        raise _wrong(path, f"it holds a {type(content).__name__}", "it must be a JSON object")
    return content


def _wrong(path: str, what: str, hint: str) -> ConfigError:
    return ConfigError(f"kv_scales_file {path}: {what}", field=FIELD, value=path, hint=hint)
