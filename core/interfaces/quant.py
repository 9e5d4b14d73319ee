"""QuantMethod: how linear, expert and KV-cache weights are stored and applied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError, WeightError
from core.interfaces.moe import PLAIN, ExpertWeights, MoeRunner
from core.interfaces.spec import ModelSpec

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


class FusedLinear(Protocol):
    """A linear layer with the sum and RMS norm in front of it and the gated activation behind it, as operation
    `fused_linear` of `core.ops.reference`, whose weight and bias are the layer's own."""

    def __call__(
        self,
        x: torch.Tensor,
        *,
        residual: torch.Tensor | None = None,
        norm_weight: torch.Tensor | None = None,
        eps: float = 0.0,
        activation: str | None = None,
        keep_normed: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]: ...


class LinearMethod(ABC):
    """Weights of one linear layer: create, load, finish, apply.

    A suffix is what follows the module's name in a checkpoint: "weight", "bias", also of several segments
    ("weight.absmax"). `create` raises ConfigError for a shape that the format cannot hold or cannot share over the
    ranks (LinearShape says which rows and columns of the checkpoint's tensor this rank keeps).

    `module.ops` is the operation table the model is built with (name -> callable). Look operations up in `finish`
    and keep them as plain attributes, so that `apply` looks nothing up.
    """

    @abstractmethod
    def create(self, module: nn.Module, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> None:
        """Register empty parameters on `module`."""

    @abstractmethod
    def expected(self, shape: LinearShape) -> set[tuple[str, str]]:
        """(suffix, part name) pairs a checkpoint must give, for strict accounting."""

    def optional(self, shape: LinearShape) -> set[tuple[str, str]]:
        """Pairs that a checkpoint may give and `load` takes."""
        return set()

    @abstractmethod
    def load(self, module: nn.Module, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
        """Copy one checkpoint tensor into place. Raises WeightError on a wrong shape or an unknown suffix."""

    def load_stacked(self, module: nn.Module, shape: LinearShape, suffix: str, tensor: torch.Tensor) -> None:
        """Take one checkpoint tensor of all parts, in their order. Here: one of a row for each output, given to `load`
        part by part; override it for formats with others. Raises WeightError."""
        rows = [place.full_out_features for place in shape.parts]
        if not tensor.ndim or tensor.shape[0] != sum(rows):
            raise WeightError(
                f"shape {list(tensor.shape)}, expected {sum(rows)} rows of {shape.path}",
                hint="use a checkpoint that stores these projections one by one, or an unquantized one",
            )
        for place, piece in zip(shape.parts, tensor.split(rows), strict=True):
            self.load(module, shape, suffix, place.name, piece)

    def finish(self, module: nn.Module, shape: LinearShape) -> None:
        """After the last tensor: repack, transpose, quantize. Called once."""
        return None

    @abstractmethod
    def apply(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x [T, in_features] -> [T, out_features], bias added."""

    def fused(self, module: nn.Module, shape: LinearShape) -> FusedLinear | None:
        """`apply` together with what stands around it, where the device can do that in less than one call each; None
        leaves it to the layers to call the parts. Asked once, after `finish`."""
        return None

    def dense(self, module: nn.Module, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The weight [out_features, in_features] that `apply` multiplies with, for layers that fold it into others.
        Called after `finish`. Here: what `apply` does to unit vectors; override it where that is slow."""
        import torch

        zero = self.apply(module, torch.zeros(1, shape.in_features, dtype=dtype, device=device))
        rows = self.apply(module, torch.eye(shape.in_features, dtype=dtype, device=device))
        return (rows - zero).t().contiguous()


@dataclass(frozen=True, slots=True)
class ExpertsShape:
    """The experts of one layer on this rank: gate and up [intermediate_size, hidden_size], down [hidden_size,
    intermediate_size] each. full_intermediate_size, intermediate_offset: the checkpoint's, and the first of it that
    this rank keeps. activation: of the gate."""

    path: str
    num_experts: int
    hidden_size: int
    intermediate_size: int
    full_intermediate_size: int
    intermediate_offset: int = 0
    activation: str = "silu"


ExpertSlot = tuple[str, str, int]  # suffix, part ("gate", "up", "down" or ""), expert or -1 where one tensor has all


class ExpertsMethod(ABC):
    """Weights of the experts of one layer: create, load, finish, apply. The twin of LinearMethod.

    format: of the `ExpertWeights` that it hands to the MoeRunner, or None if `apply` computes the experts itself.
    """

    format: str | None = PLAIN

    @abstractmethod
    def create(self, module: nn.Module, shape: ExpertsShape, dtype: torch.dtype, device: torch.device) -> None:
        """Register empty parameters on `module`. Raises ConfigError for a shape that the format cannot hold."""

    @abstractmethod
    def expected(self, shape: ExpertsShape) -> set[ExpertSlot]:
        """Slots that a checkpoint must fill."""

    def covers(self, shape: ExpertsShape, suffix: str, part: str, expert: int) -> set[ExpertSlot]:
        """Slots that one checkpoint tensor fills: several where a format stacks what others split. Slots that
        `expected` does not name make the tensor unexpected; the empty set takes the tensor without needing it."""
        return {(suffix, part, expert)}

    @abstractmethod
    def load(
        self, module: nn.Module, shape: ExpertsShape, suffix: str, part: str, expert: int, tensor: torch.Tensor
    ) -> None:
        """Copy this rank's share of one checkpoint tensor into place. Raises WeightError."""

    @abstractmethod
    def finish(self, module: nn.Module, shape: ExpertsShape) -> ExpertWeights | None:
        """After the last tensor: repack, quantize. Returns what the runner gets; None if `format` is None."""

    def apply(
        self, module: nn.Module, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor
    ) -> torch.Tensor:
        """Only called if `format` is None; shapes as in `MoeRunner.run`."""
        raise AssertionError(f"{type(self).__name__} has format None and lacks apply")


@dataclass(frozen=True, slots=True)
class QuantFacts:
    """What a quantization method will be used with. dtype: compute type. hardware: name of the device's plugin.
    moe: the chosen runner's class."""

    spec: ModelSpec
    dtype: str
    hardware: str
    tensor_parallel_size: int
    moe: type[MoeRunner]


class QuantMethod(ABC):
    """A quantization format. Chosen by the operator, or by the checkpoint's `quantization_config` among
    installed methods (a checkpoint names a format, never a plugin).

    batch_invariant: its layers compute with the operations of the table alone, so that these decide whether a
    request's results depend on the batch.
    """

    batch_invariant: ClassVar[bool] = False

    def __init__(self, hf_quant_config: Mapping[str, Any] | None, ctx: PluginContext) -> None:
        self.config = hf_quant_config
        self.ctx = ctx

    @classmethod
    @abstractmethod
    def recognises(cls, hf_quant_config: Mapping[str, Any] | None) -> bool:
        """Whether this method reads checkpoints with that quantization_config (None: not quantized)."""

    def rejects(self, facts: QuantFacts) -> str | None:
        """Why this method cannot serve the model, device or number of ranks, or None. Asked before anything is
        loaded; the text should say the way out."""
        return None

    @abstractmethod
    def linear(self, path: str, sources: Sequence[str]) -> LinearMethod:
        """The method for the linear layer at `path` of the model. sources: the checkpoint modules that fill it, one
        for each part ("model.layers.0.self_attn.q_proj", ...); lists of modules to skip speak of these, and match
        whole dotted segments (`core.layers.skip.skips`). Where some parts are to be skipped and others not, it keeps
        each as it should be or raises ConfigError."""

    def experts(self, path: str, sources: Sequence[str]) -> ExpertsMethod:
        """The method for the experts at `path`; arguments as in `linear`, sources with "{expert}" in place of the
        number where each expert is a module of its own. Raises ConfigError if the method has none for experts."""
        raise ConfigError(
            f"quantization method {type(self).__name__} cannot quantize the experts at {path}",
            field="model.quantization",
            hint="use another --quantization, or an unquantized checkpoint",
        )

    def ignored(self) -> Mapping[str, str]:
        """Tensors of the format that belong to no layer, as in `WeightRules.ignored`: regular expressions of checkpoint
        tensor names to leave out, each with a reason people can read."""
        return {}

    def kv_cache_dtype(self) -> str | None:
        """A KV-cache dtype that the checkpoint asks for, or None."""
        return None

    def kv_scales(self) -> Mapping[str, str]:
        """Tensors of the format that are scales of cached keys and values: regular expressions of whole checkpoint
        tensor names with a group `layer` (the layer's number), each with what the scale is for: "k", "v" or "kv", both.
        Such a tensor holds one number, or one for each KV head, by which `AttentionConfig.scales` multiplies what is
        cached. Core reads them if the cache has eight bits; else they are left out with a line that says so."""
        return {}
