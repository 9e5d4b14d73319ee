"""The architectures that core finds under their Hugging Face names."""

from __future__ import annotations

from core.interfaces.build import BuildContext
from core.interfaces.model import CausalLM, HfConfig, ModelArch, WeightRules
from core.interfaces.spec import ModelDefaults, ModelSpec
from plugin_glm4.config import read_glm4, read_glm4_moe, read_glm4_moe_lite
from plugin_glm4.weights import weight_rules


class Glm4Arch(ModelArch):
    """Glm4ForCausalLM: GLM-4 (0414)."""

    @classmethod
    def spec(cls, hf_config: HfConfig) -> ModelSpec:
        return read_glm4(hf_config)

    @classmethod
    def build(cls, spec: ModelSpec, ctx: BuildContext) -> CausalLM:
        from plugin_glm4.model import build_model

        return build_model(spec, ctx)

    @classmethod
    def weights(cls, spec: ModelSpec) -> WeightRules:
        return weight_rules(spec)


class Glm4MoeArch(Glm4Arch):
    """Glm4MoeForCausalLM: GLM-4.5, 4.6 and 4.7."""

    @classmethod
    def spec(cls, hf_config: HfConfig) -> ModelSpec:
        return read_glm4_moe(hf_config)

    @classmethod
    def defaults(cls, spec: ModelSpec, hardware: str) -> ModelDefaults:
        return ModelDefaults(tool_parser="glm45", reasoning_parser="glm45")


class Glm4MoeLiteArch(Glm4Arch):
    """Glm4MoeLiteForCausalLM: GLM-4.7-Flash."""

    @classmethod
    def spec(cls, hf_config: HfConfig) -> ModelSpec:
        return read_glm4_moe_lite(hf_config)

    @classmethod
    def defaults(cls, spec: ModelSpec, hardware: str) -> ModelDefaults:
        return ModelDefaults(tool_parser="glm47", reasoning_parser="glm45")
