"""The architectures that core finds under their Hugging Face names."""

from __future__ import annotations

from core.interfaces.build import BuildContext
from core.interfaces.model import CausalLM, HfConfig, ModelArch, WeightRules
from core.interfaces.spec import ModelSpec
from plugin_gemma.config import read_gemma2
from plugin_gemma.weights import GEMMA2_CLASSIFIER_RULES, GEMMA2_RULES


class Gemma2Arch(ModelArch):
    """Gemma2ForCausalLM."""

    @classmethod
    def spec(cls, hf_config: HfConfig) -> ModelSpec:
        return read_gemma2(hf_config, "Gemma2ForCausalLM")

    @classmethod
    def build(cls, spec: ModelSpec, ctx: BuildContext) -> CausalLM:
        from plugin_gemma.model import build_model

        return build_model(spec, ctx)

    @classmethod
    def weights(cls, spec: ModelSpec) -> WeightRules:
        return GEMMA2_RULES


class Gemma2ClassifierArch(Gemma2Arch):
    """Gemma2ForSequenceClassification: classifiers, and reward models with one label."""

    @classmethod
    def spec(cls, hf_config: HfConfig) -> ModelSpec:
        return read_gemma2(hf_config, "Gemma2ForSequenceClassification", classifies=True)

    @classmethod
    def weights(cls, spec: ModelSpec) -> WeightRules:
        return GEMMA2_CLASSIFIER_RULES
