"""The suite of models: this repository's architectures pass, broken ones do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core.interfaces.model import ModuleRule, WeightRules
from core.interfaces.spec import ModelDefaults
from core.layers.norm import RmsNorm
from core.testing.contracts.model import ModelContract
from core.testing.contracts.model_checkpoint import Reference
from core.testing.mock_model import MockConfig, MockModel, reference_logits
from plugin_demo import checkpoint
from plugin_llama.arch import LlamaArch

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": None,
}


class TestLlama(ModelContract):
    name = "LlamaForCausalLM"
    required_fields = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [
            {"model_type": "llama", **SMALL},
            {
                "model_type": "llama", **SMALL, "attention_bias": True, "mlp_bias": True, "head_dim": 12,
                "tie_word_embeddings": True, "num_key_value_heads": 4,
            },
        ]  # fmt: skip


class TestMistral(ModelContract):
    name = "MistralForCausalLM"

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [{"model_type": "mistral", **SMALL, "sliding_window": 6}]


class TestQwen2(ModelContract):
    name = "Qwen2ForCausalLM"

    def configs(self) -> Sequence[Mapping[str, Any]]:
        # One layer keeps everything, one a window: two cache groups.
        return [
            {"model_type": "qwen2", **SMALL, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
        ]


class TestQwen3(ModelContract):
    name = "Qwen3ForCausalLM"

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [{"model_type": "qwen3", **SMALL, "head_dim": 10, "tie_word_embeddings": True}]


class TestQwen2Classifier(ModelContract):
    name = "Qwen2ForSequenceClassification"

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [{"model_type": "qwen2", **SMALL, "architectures": [self.name], "num_labels": 5}]


class TestQwen3Classifier(ModelContract):
    name = "Qwen3ForSequenceClassification"

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [{"model_type": "qwen3", **SMALL, "head_dim": 10, "architectures": [self.name], "num_labels": 1}]


class TestQwen2Headless(ModelContract):
    name = "Qwen2Model"

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [{"model_type": "qwen2", **SMALL, "architectures": [self.name]}]


class TestQwen3Headless(ModelContract):
    name = "Qwen3Model"

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [{"model_type": "qwen3", **SMALL, "head_dim": 10, "architectures": [self.name]}]


GEMMA: dict[str, Any] = {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 6}
# Caps low enough to be felt at the size of these logits.
CAPPED: dict[str, Any] = {**GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}


class TestGemma2(ModelContract):
    name = "Gemma2ForCausalLM"

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [
            {"model_type": "gemma2", **SMALL, **CAPPED, "num_hidden_layers": 3},
            {
                "model_type": "gemma2", **SMALL, **GEMMA, "attn_logit_softcapping": None, "attention_bias": True,
                "final_logit_softcapping": None, "tie_word_embeddings": False,
                "layer_types": ["full_attention", "full_attention"], "hidden_activation": "gelu",
            },
        ]  # fmt: skip


class TestGemma2Classifier(ModelContract):
    name = "Gemma2ForSequenceClassification"

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [{"model_type": "gemma2", **SMALL, **CAPPED, "architectures": [self.name], "num_labels": 3}]


class TestQwen3Moe(ModelContract):
    name = "Qwen3MoeForCausalLM"

    def configs(self) -> Sequence[Mapping[str, Any]]:
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "mlp_only_layers": [0]}
        return [{"model_type": "qwen3_moe", **SMALL, "head_dim": 8, "norm_topk_prob": True, **experts}]


GLM_EXPERTS: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.8,
}


class TestGlm4(ModelContract):
    name = "Glm4ForCausalLM"

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [{"model_type": "glm4", **SMALL, "head_dim": 12}]


class TestGlm4Moe(ModelContract):
    name = "Glm4MoeForCausalLM"
    unquantized = (r".*\.mlp\.gate\.weight",)  # routers are computed in float32

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [{"model_type": "glm4_moe", **SMALL, **GLM_EXPERTS, "head_dim": 12, "n_group": 2, "topk_group": 1}]


class TestGlm4MoeLite(ModelContract):
    """Latent attention."""

    name = "Glm4MoeLiteForCausalLM"
    unquantized = (r".*\.mlp\.gate\.weight",)

    def configs(self) -> Sequence[Mapping[str, Any]]:
        latent = {"q_lora_rank": 12, "kv_lora_rank": 14, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 7}
        return [{"model_type": "glm4_moe_lite", **SMALL, **GLM_EXPERTS, **latent, "num_key_value_heads": 4}]


class TestDemo(ModelContract):
    """The packaged, trained checkpoint itself."""

    name = "Qwen3ForCausalLM"
    page_sizes = (16,)
    logits_tolerance = 1e-3  # its logits are of order 30

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [json.loads((checkpoint() / "config.json").read_text())]

    def write_checkpoint(self, config: Mapping[str, Any], folder: Path) -> None:
        for name in ("config.json", "model.safetensors"):
            shutil.copy(checkpoint() / name, folder / name)


class TestMock(ModelContract):
    """The mock model of core.testing, which no entry point names."""

    name = "MockForCausalLM"
    implementation = MockModel
    dtypes = ("float32", "float64")
    imports_torch = True

    def configs(self) -> Sequence[Mapping[str, Any]]:
        return [MockConfig(windows=windows).hf_config() for windows in ((None,), (None, 5, None), (4, 3))]

    def write_checkpoint(self, config: Mapping[str, Any], folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(config))
        save_file({}, folder / "model.safetensors")

    def reference(self, config: Mapping[str, Any], folder: Path) -> Reference:
        own = MockModel.spec(config).arch

        def logits(tokens: Sequence[int]) -> torch.Tensor:
            rows = [reference_logits(own, tokens[: end + 1]) for end in range(len(tokens))]
            return torch.from_numpy(np.stack(rows)).float()

        return logits


# -- broken ones


class WrongRope(LlamaArch):
    @classmethod
    def spec(cls, hf_config: Mapping[str, Any]) -> Any:
        spec = super().spec(hf_config)
        return replace(spec, arch=replace(spec.arch, rope=replace(spec.arch.rope, theta=77.0)))


class SwappedGateAndUp(LlamaArch):
    @classmethod
    def weights(cls, spec: Any) -> WeightRules:
        swap = {"gate": "up", "up": "gate"}
        rules = [replace(rule, part=swap.get(rule.part or "", rule.part)) for rule in super().weights(spec).rules]
        return WeightRules(tuple(rules), {})


class IgnoredTensor(LlamaArch):
    """Takes no key projection's tensors, and hides it behind a pattern that matches too much."""

    @classmethod
    def weights(cls, spec: Any) -> WeightRules:
        return WeightRules(super().weights(spec).rules, {r".*\.mlp_extra\..*": "not needed", r"un.*": "not needed"})


class Careless(LlamaArch):
    """Leaves out whatever it does not know."""

    @classmethod
    def weights(cls, spec: Any) -> WeightRules:
        return WeightRules((*super().weights(spec).rules, ModuleRule("unheard_of", "norm")), {r".*unheard_of": "x"})


class MissingNorm(LlamaArch):
    @classmethod
    def build(cls, spec: Any, ctx: Any) -> Any:
        model = super().build(spec, ctx)
        model.layers[1].post_attention_layernorm.add = lambda x, residual: (x + residual, x + residual)
        return model


class UnfilledParameter(LlamaArch):
    @classmethod
    def build(cls, spec: Any, ctx: Any) -> Any:
        model = super().build(spec, ctx)
        model.scale = torch.nn.Parameter(torch.empty(3), requires_grad=False)
        return model


class WithoutTheSeam(LlamaArch):
    @classmethod
    def build(cls, spec: Any, ctx: Any) -> Any:
        model = super().build(spec, ctx)
        model.norm = RmsNorm("norm", spec.hidden_size, 1e-6, ctx)
        return model


class UnquantizableHead(LlamaArch):
    @classmethod
    def build(cls, spec: Any, ctx: Any) -> Any:
        from core.layers.unquantized import Unquantized

        class Whole(Unquantized):
            pass

        return super().build(spec, ctx.replace(quant=Whole(None, ctx.quant.ctx)))


class WrongGroup(LlamaArch):
    @classmethod
    def spec(cls, hf_config: Mapping[str, Any]) -> Any:
        spec = super().spec(hf_config)
        return replace(spec, cache_groups=(replace(spec.cache_groups[0], num_kv_heads=1),))


class HoldsAList(LlamaArch):
    @classmethod
    def spec(cls, hf_config: Mapping[str, Any]) -> Any:
        return replace(super().spec(hf_config), arch=[1])


class Untyped(LlamaArch):
    @classmethod
    def spec(cls, hf_config: Mapping[str, Any]) -> Any:
        hf_config["hidden_size"] // 1
        return super().spec(hf_config)


class LooksAtNeighbours(LlamaArch):
    @classmethod
    def build(cls, spec: Any, ctx: Any) -> Any:
        model = super().build(spec, ctx)
        forward = model.forward
        model.forward = lambda batch: forward(batch) + 1e-2 * len(batch.layouts[0].q_lens)
        return model


class EveryRankAddsTheBias(LlamaArch):
    @classmethod
    def build(cls, spec: Any, ctx: Any) -> Any:
        model = super().build(spec, ctx)
        for layer in model.layers:
            layer.self_attn.o_proj.rank = 0
        return model


class BuildsElsewhere(LlamaArch):
    @classmethod
    def build(cls, spec: Any, ctx: Any) -> Any:
        return super().build(spec, ctx.replace(device=torch.device("cpu")))


class WishesForLetters(LlamaArch):
    @classmethod
    def defaults(cls, spec: Any, hardware: str) -> ModelDefaults:
        return ModelDefaults(attention="torch_native")  # type: ignore[arg-type]


class PositionsFromZero(LlamaArch):
    """Right for whole prompts, wrong for whatever follows."""

    @classmethod
    def build(cls, spec: Any, ctx: Any) -> Any:
        model = super().build(spec, ctx)
        forward = model.forward

        def shifted(batch: Any) -> Any:
            batch.positions = batch.positions - batch.positions.min()
            return forward(batch)

        model.forward = shifted
        return model


@pytest.mark.parametrize(
    ("arch", "laws"),
    [
        (BuildsElsewhere, ["builds_in_every_dtype"]),
        (WishesForLetters, ["defaults_are_wishes"]),
        (PositionsFromZero, ["prompt_in_chunks", "token_by_token", "after_a_prefix_hit", "mixed_steps"]),
        (WrongRope, ["whole_prompt"]),
        (SwappedGateAndUp, ["whole_prompt"]),
        (MissingNorm, ["whole_prompt"]),
        (IgnoredTensor, ["unexpected_tensors_are_named"]),
        (Careless, ["unexpected_tensors_are_named"]),
        (UnfilledParameter, ["every_tensor_is_taken"]),
        (WithoutTheSeam, ["the_device_may_replace_layers"]),
        (UnquantizableHead, ["linear_layers_ask_the_quantization_method"]),
        (WrongGroup, ["spec_is_consistent"]),
        (HoldsAList, ["spec_is_plain_data"]),
        (Untyped, ["bad_fields_are_named", "missing_fields_are_named"]),
        (LooksAtNeighbours, ["other_sequences_do_not_matter"]),
        (EveryRankAddsTheBias, ["ranks_equal_one"]),
    ],
)
def test_mutants_are_caught(arch: type[LlamaArch], laws: list[str], tmp_path: Path) -> None:
    class Suite(ModelContract):
        name = "LlamaForCausalLM"

        @classmethod
        def plugin(cls) -> Any:
            return arch

        def configs(self) -> Sequence[Mapping[str, Any]]:
            return [{"model_type": "llama", **SMALL, "attention_bias": True, "rope_theta": 1000.0}]

    suite = Suite()
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    case = suite.make_case(0, folder)
    for law in laws:
        test = getattr(suite, f"test_{law}")
        wants_folder = "tmp_path" in test.__code__.co_varnames
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            test(case, tmp_path) if wants_folder else test(case)
