"""Layers, checkpoints and formats of the fp8 plugin for its tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from parity import build_context

from core.interfaces.context import PluginContext
from core.layers.linear import LinearBase
from plugin_fp8.method import Fp8
from plugin_fp8.settings import Options

BLOCK: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
TENSOR: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
FLOAT = {"num_bits": 8, "type": "float", "symmetric": True}
GROUP: dict[str, Any] = {
    "targets": ["Linear"],
    "weights": {**FLOAT, "strategy": "channel", "dynamic": False},
    "input_activations": {**FLOAT, "strategy": "token", "dynamic": True},
}
CHANNEL: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": GROUP},
    "ignore": ["lm_head"],
}


class Rank:
    """One rank of a group whose results the test puts together itself."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return x


def method(config: Mapping[str, Any] | None = None, **options: Any) -> Fp8:
    return Fp8(config, PluginContext(settings=Options(**options)))


def context(
    config: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32, rank: Rank | None = None,
    **options: Any,
) -> Any:  # fmt: skip
    return build_context(quant=method(config, **options), dtype=dtype, tp=rank or Rank())


def matrix(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * cols**-0.5


def stored(weight: torch.Tensor, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What a checkpoint of that format holds of a matrix: suffix -> tensor."""
    if config is BLOCK:
        rows, cols = weight.shape
        scale = torch.empty(-(-rows // 128), -(-cols // 128))
        values = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                tile = weight[128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
                scale[i, j] = tile.abs().max() / 448
                values[128 * i : 128 * i + 128, 128 * j : 128 * j + 128] = (tile / scale[i, j]).to(values.dtype)
        return {"weight": values, "weight_scale_inv": scale}
    scale = (weight.abs().amax(1, keepdim=True) if config is CHANNEL else weight.abs().amax().view(1)) / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def means(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The matrix that a module's tensors stand for, straight from the definitions, float64."""
    weight = tensors["weight"].double()
    if "weight_scale_inv" in tensors:
        scale = tensors["weight_scale_inv"].double()
        rows = torch.arange(weight.shape[0]) // 128
        cols = torch.arange(weight.shape[1]) // 128
        return weight * scale[rows][:, cols]
    return weight * tensors["weight_scale"].double()


def fill(layer: LinearBase, tensors: Mapping[str, torch.Tensor], part: str = "") -> None:
    for suffix, tensor in tensors.items():
        assert layer.covers(suffix, part) <= layer.expected()
        layer.load(suffix, part, tensor)


def dense(layer: LinearBase, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return layer.method.dense(layer, layer.shape, dtype, torch.device("cpu"))
