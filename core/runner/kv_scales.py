"""Scales of cached keys and values, as a checkpoint holds them beside its weights. They are numbers of a layer, known
when loading ends, and belong to no module: attention backends get them with their configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from core.interfaces.errors import WeightError
from core.interfaces.spec import ModelSpec

if TYPE_CHECKING:
    import torch

_WHAT = {"k": "keys", "v": "values"}
_WAY_OUT = "correct the checkpoint, or choose a cache that needs no scales with --kv-cache-dtype bfloat16"


@dataclass(frozen=True, slots=True)
class KvScales:
    """by_layer: of keys and values. present: whether the checkpoint has any, read or not. by_head: whether heads had
    scales of their own that differ; the largest is the layer's then."""

    by_layer: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    present: bool = False
    by_head: bool = False


class KvScaleReader:
    """names: as `QuantMethod.kv_scales`. wanted: whether they are read; else it is only noted that there are some."""

    def __init__(self, names: Mapping[str, str], spec: ModelSpec, *, wanted: bool) -> None:
        self._patterns = [(re.compile(pattern), parts) for pattern, parts in names.items()]
        self._layers = {i: layer.attention for i, layer in enumerate(spec.layers) if layer.attention is not None}
        self._wanted = wanted

    def place(self, name: str) -> tuple[int, str] | None:
        """Layer and "k", "v" or "kv" of a checkpoint tensor; None if it is no scale of a layer that caches."""
        for pattern, parts in self._patterns:
            match = pattern.fullmatch(name)
            if match is not None and int(match["layer"]) in self._layers:
                return int(match["layer"]), parts
        return None

    def read(self, tensors: Iterable[tuple[Path, str, torch.Tensor]]) -> KvScales:
        """tensors: (file, name, number or numbers), all of them with a `place`. Raises WeightError naming file and
        tensor."""
        found: dict[tuple[int, str], tuple[float, str]] = {}
        present = by_head = False
        for file, name, tensor in tensors:
            place = self.place(name)
            assert place is not None
            present = True
            if not self._wanted:
                break
            layer, parts = place
            numbers = self._numbers(file, name, layer, tensor)
            by_head |= len(set(numbers)) > 1
            for part in parts:
                value, other = found.setdefault((layer, part), (max(numbers), name))
                if value != max(numbers):
                    raise WeightError(
                        f"{file}: {other} and {name} both give the scale of cached {_WHAT[part]} of layer {layer}",
                        hint=_WAY_OUT,
                    )
        return KvScales(self._paired(found), present, by_head)

    def _numbers(self, file: Path, name: str, layer: int, tensor: torch.Tensor) -> list[float]:
        """One, or one for each KV head of the whole model: every rank takes the largest of all heads, so that how many
        ranks there are changes no result. A floating-point number keeps as many digits under any scale; only where the
        scales of heads lie orders of magnitude apart would more numbers of the one with the smallest become zero."""
        heads = self._layers[layer].num_kv_heads
        if tensor.numel() not in (1, heads) or not tensor.dtype.is_floating_point:
            expected = "1 number" if heads == 1 else f"1 number, or {heads}, one for each KV head"
            raise WeightError(
                f"{file}: tensor {name}: shape {list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}, "
                f"expected {expected}",
                hint=_WAY_OUT,
            )
        numbers = [float(value) for value in tensor.double().flatten().tolist()]
        wrong = next((value for value in numbers if not (math.isfinite(value) and value > 0)), None)
        if wrong is not None:
            raise WeightError(f"{file}: tensor {name} is {wrong}; a scale is greater than 0", hint=_WAY_OUT)
        return numbers

    def _paired(self, found: Mapping[tuple[int, str], tuple[float, str]]) -> dict[int, tuple[float, float]]:
        pairs = {}
        for layer in sorted({layer for layer, _ in found}):
            keys, values = found.get((layer, "k")), found.get((layer, "v"))
            if keys is not None and values is None and self._layers[layer].latent_dim:
                values = keys  # a latent is both
            if keys is None or values is None:
                has, lacks = ("keys", "values") if values is None else ("values", "keys")
                raise WeightError(
                    f"the checkpoint has a scale of cached {has} of layer {layer} and none of its {lacks}",
                    hint=_WAY_OUT,
                )
            pairs[layer] = (keys[0], values[0])
        return pairs


def describe(scales: KvScales, spec: ModelSpec, dtype: str, *, eight_bits: bool) -> str:
    """The line for the log about what a checkpoint's scales are used for; "" if there is nothing to say."""
    if not eight_bits:
        if not scales.present:
            return ""
        return f"the checkpoint's scales of cached keys and values are not used: the cache is kept in {dtype}"
    layers = [i for i, layer in enumerate(spec.layers) if layer.attention is not None]
    without = [i for i in layers if i not in scales.by_layer]
    if not scales.by_layer:
        return f"cached keys and values in {dtype} have no scales: what is beyond its range becomes its largest number"
    text = f"cached keys and values in {dtype} are scaled as the checkpoint says, in {len(scales.by_layer)} layers"
    if scales.by_head:
        text += "; of scales for each head the largest is taken"
    if without:
        text += f"; layers {', '.join(map(str, without))} have none there and are kept unscaled"
    return text
