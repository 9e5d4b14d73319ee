"""What the entry point names: the architecture, as core asks for it."""

from __future__ import annotations

from core.interfaces.build import BuildContext
from core.interfaces.model import CausalLM, HfConfig, ModelArch, WeightRules
from core.interfaces.spec import ModelSpec
from example_model.config import read_config
from example_model.weights import RULES


class Gpt2Arch(ModelArch):
    """GPT2LMHeadModel (Radford et al. 2019)."""

    @classmethod
    def spec(cls, hf_config: HfConfig) -> ModelSpec:
        return read_config(hf_config)

    @classmethod
    def build(cls, spec: ModelSpec, ctx: BuildContext) -> CausalLM:
        from example_model.model import Gpt2  # imports torch, which `spec` must not

        return Gpt2(spec, ctx)

    @classmethod
    def weights(cls, spec: ModelSpec) -> WeightRules:
        return RULES
