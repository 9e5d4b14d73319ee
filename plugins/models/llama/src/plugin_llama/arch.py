"""The architectures that core finds under their Hugging Face names."""

from __future__ import annotations

from core.interfaces.build import BuildContext
from core.interfaces.model import CausalLM, HfConfig, ModelArch, WeightRules
from core.interfaces.spec import ModelSpec
from plugin_llama.config import read_config
from plugin_llama.weights import RULES


class LlamaArch(ModelArch):
    """LlamaForCausalLM."""

    @classmethod
    def spec(cls, hf_config: HfConfig) -> ModelSpec:
        return read_config(hf_config, "LlamaForCausalLM", sliding=False)

    @classmethod
    def build(cls, spec: ModelSpec, ctx: BuildContext) -> CausalLM:
        from plugin_llama.model import build_model

        return build_model(spec, ctx)

    @classmethod
    def weights(cls, spec: ModelSpec) -> WeightRules:
        return RULES


class MistralArch(LlamaArch):
    """MistralForCausalLM: the same decoder with an optional sliding window."""

    @classmethod
    def spec(cls, hf_config: HfConfig) -> ModelSpec:
        return read_config(hf_config, "MistralForCausalLM", sliding=True)
