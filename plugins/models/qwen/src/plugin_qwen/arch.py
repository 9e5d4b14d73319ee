"""The architectures that core finds under their Hugging Face names."""

from __future__ import annotations

from typing import ClassVar

from core.interfaces.build import BuildContext
from core.interfaces.model import CausalLM, HfConfig, ModelArch, WeightRules
from core.interfaces.spec import ModelSpec
from plugin_qwen.config import (
    QWEN2,
    QWEN2_CLASSIFIER,
    QWEN2_HEADLESS,
    QWEN3,
    QWEN3_CLASSIFIER,
    QWEN3_HEADLESS,
    QWEN3_MOE,
    Family,
    read_config,
)
from plugin_qwen.weights import (
    QWEN2_CLASSIFIER_RULES,
    QWEN2_HEADLESS_RULES,
    QWEN2_RULES,
    QWEN3_CLASSIFIER_RULES,
    QWEN3_HEADLESS_RULES,
    QWEN3_MOE_RULES,
    QWEN3_RULES,
)


class Qwen2Arch(ModelArch):
    """Qwen2ForCausalLM: Qwen 2 and 2.5."""

    family: ClassVar[Family] = QWEN2
    rules: ClassVar[WeightRules] = QWEN2_RULES

    @classmethod
    def spec(cls, hf_config: HfConfig) -> ModelSpec:
        return read_config(hf_config, cls.family)

    @classmethod
    def build(cls, spec: ModelSpec, ctx: BuildContext) -> CausalLM:
        from plugin_qwen.model import build_model

        return build_model(spec, ctx)

    @classmethod
    def weights(cls, spec: ModelSpec) -> WeightRules:
        return cls.rules


class Qwen3Arch(Qwen2Arch):
    """Qwen3ForCausalLM: QK norm, no fixed biases."""

    family = QWEN3
    rules = QWEN3_RULES


class Qwen2ClassifierArch(Qwen2Arch):
    """Qwen2ForSequenceClassification: classifiers, rerankers and reward models."""

    family = QWEN2_CLASSIFIER
    rules = QWEN2_CLASSIFIER_RULES


class Qwen3ClassifierArch(Qwen2Arch):
    """Qwen3ForSequenceClassification: the same of Qwen 3."""

    family = QWEN3_CLASSIFIER
    rules = QWEN3_CLASSIFIER_RULES


class Qwen2HeadlessArch(Qwen2Arch):
    """Qwen2Model: as embedding models are saved by those who train them."""

    family = QWEN2_HEADLESS
    rules = QWEN2_HEADLESS_RULES


class Qwen3HeadlessArch(Qwen2Arch):
    """Qwen3Model: the same of Qwen 3."""

    family = QWEN3_HEADLESS
    rules = QWEN3_HEADLESS_RULES


class Qwen3MoeArch(Qwen2Arch):
    """Qwen3MoeForCausalLM: Qwen 3 with experts."""

    family = QWEN3_MOE
    rules = QWEN3_MOE_RULES
