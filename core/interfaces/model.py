"""ModelArch: a model architecture, from a Hugging Face configuration to a module and its weight rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from core.interfaces.spec import ModelDefaults, ModelSpec

if TYPE_CHECKING:
    import torch

    from core.interfaces.batch import ForwardBatch
    from core.interfaces.build import BuildContext

HfConfig = Mapping[str, Any]  # config.json as it stands on disk


@dataclass(frozen=True, slots=True)
class ModuleRule:
    """Tensors under one checkpoint module go to one of the model's modules.

    source: dotted path in the checkpoint, e.g. "model.layers.{layer}.self_attn.q_proj".
    target: dotted path in the model, e.g. "layers.{layer}.attention.qkv".
    part: which part of a stacked module it fills ("q", "k", "v", "gate", "up", ...), or None.
    `{layer}` and `{expert}` match decimal numbers and stand for the same number on both sides. If `target` has
    no `{expert}`, the expert's number is handed to the module as `expert`. Suffixes (weight, bias, weight_scale,
    ...) belong to the module and its quantization method, never to the rule.
    """

    source: str
    target: str
    part: str | None = None


@dataclass(frozen=True, slots=True)
class WeightRules:
    """Checkpoint names to modules. Strict: a tensor that no rule takes and no `ignored` pattern matches is an
    error, and so is a parameter that no tensor filled.

    ignored: regular expressions of checkpoint tensor names to leave out, each with a reason people can read.
    """

    rules: tuple[ModuleRule, ...]
    ignored: Mapping[str, str]


class CausalLM(Protocol):
    """The module a ModelArch builds (a torch.nn.Module). One of task "embed" needs no `compute_logits`."""

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states [T, hidden_size] after the final norm."""

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [S, hidden_size] -> logits [S, vocab_size], gathered over ranks."""


class ScoringModel(Protocol):
    """The module of a model whose task is "classify"; it needs no `compute_logits`."""

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """As in CausalLM."""

    def compute_scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [N, hidden_size], pooled, one a text -> scores [N, number of labels] before any activation, whole on
        every rank."""


class ModelArch(ABC):
    """One architecture. Stateless: class methods only, so nothing hides in an instance."""

    spec_version: ClassVar[int] = 1

    @classmethod
    @abstractmethod
    def spec(cls, hf_config: HfConfig) -> ModelSpec:
        """Read config.json (layouts of transformers 4 and 5). Raises CheckpointError naming a bad field."""

    @classmethod
    @abstractmethod
    def build(cls, spec: ModelSpec, ctx: BuildContext) -> CausalLM:
        """The module, with empty parameters on ctx.device, made from core's layers."""

    @classmethod
    @abstractmethod
    def weights(cls, spec: ModelSpec) -> WeightRules:
        """Which checkpoint module fills which module."""

    @classmethod
    def defaults(cls, spec: ModelSpec, hardware: str) -> ModelDefaults:
        """Wishes for options the operator left open."""
        return ModelDefaults()
