"""QuantMethod: how linear, expert and KV-cache weights are stored and applied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.interfaces.context import PluginContext

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class LinearPart:
    """One checkpoint tensor's place in a stacked linear weight, on this rank.

    name: "q", "gate", ... or "" for an unstacked layer. out_features: rows of this rank.
    offset: first row in the stacked weight. full_out_features: rows in the checkpoint.
    shard_offset: first checkpoint row that this rank keeps.
    """

    name: str
    out_features: int
    offset: int
    full_out_features: int
    shard_offset: int = 0


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer on this rank: weight [sum(parts.out_features), in_features].

    full_in_features, in_offset: the checkpoint's columns and the first one this rank keeps (row parallel).
    """

    path: str
    in_features: int
    parts: tuple[LinearPart, ...]
    bias: bool
    full_in_features: int
    in_offset: int = 0

    @property
    def out_features(self) -> int:
        return sum(part.out_features for part in self.parts)


class LinearMethod(ABC):
    """Weights of one linear layer: create, load, finish, apply.

    `module.ops` is the operation table the model is built with (name -> callable). Look operations up in `finish`
    and keep them as plain attributes, so that `apply` looks nothing up.
    """

    @abstractmethod
    def create(self, module: nn.Module, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> None:
        """Register empty parameters on `module`."""

    @abstractmethod
    def expected(self, shape: LinearShape) -> set[tuple[str, str]]:
        """(suffix, part name) pairs a checkpoint must give, for strict accounting."""

    @abstractmethod
    def load(self, module: nn.Module, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
        """Copy one checkpoint tensor into place. Raises WeightError on a wrong shape or an unknown suffix."""

    def finish(self, module: nn.Module, shape: LinearShape) -> None:
        """After the last tensor: repack, transpose, quantize. Called once."""
        return None

    @abstractmethod
    def apply(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x [T, in_features] -> [T, out_features], bias added."""


class QuantMethod(ABC):
    """A quantization format. Chosen by the operator, or by the checkpoint's `quantization_config` among
    installed methods (a checkpoint names a format, never a plugin)."""

    def __init__(self, hf_quant_config: Mapping[str, Any] | None, ctx: PluginContext) -> None:
        self.config = hf_quant_config
        self.ctx = ctx

    @classmethod
    @abstractmethod
    def recognises(cls, hf_quant_config: Mapping[str, Any] | None) -> bool:
        """Whether this method reads checkpoints with that quantization_config (None: not quantized)."""

    @abstractmethod
    def linear(self, path: str) -> LinearMethod:
        """The method for the linear layer at `path`; skip lists match whole dotted segments."""

    def kv_cache_dtype(self) -> str | None:
        """A KV-cache dtype that the checkpoint asks for, or None."""
        return None
