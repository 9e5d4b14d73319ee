"""plugin-glm4 as core sees it: entry points, manifest, config.json."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from importlib.resources import files
from typing import Any

import pytest
import transformers

from core.interfaces.errors import CheckpointError
from core.interfaces.model import ModelArch
from core.interfaces.spec import StateKind
from plugin_glm4.arch import Glm4Arch, Glm4MoeArch, Glm4MoeLiteArch

# config.json of GLM-4-9B-0414, of GLM-4.5 and of GLM-4.7-Flash, with the names of transformers 4.
GLM4_9B: dict[str, Any] = {
    "architectures": ["Glm4ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "max_position_embeddings": 32768,
    "model_type": "glm4",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 151552,
}
GLM45: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "partial_rotary_factor": 0.5,
    "intermediate_size": 12288,
    "max_position_embeddings": 131072,
    "model_type": "glm4_moe",
    "moe_intermediate_size": 1536,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.5,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "num_hidden_layers": 92,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_qk_norm": True,
    "vocab_size": 151552,
}
FLASH: dict[str, Any] = {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "attention_bias": False,
    "dtype": "bfloat16",
    "eos_token_id": [154820, 154827, 154829],
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "kv_lora_rank": 512,
    "max_position_embeddings": 202752,
    "model_type": "glm4_moe_lite",
    "moe_intermediate_size": 1536,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 20,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 47,
    "num_key_value_heads": 20,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 1.0,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.8,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 256,
    "vocab_size": 154880,
}


def test_entry_points_and_manifest_name_the_same() -> None:
    points = {p.name: p.load() for p in distribution("plugin-glm4").entry_points if p.group == "core.models"}
    assert points == {
        "Glm4ForCausalLM": Glm4Arch,
        "Glm4MoeForCausalLM": Glm4MoeArch,
        "Glm4MoeLiteForCausalLM": Glm4MoeLiteArch,
    }
    manifest = tomllib.loads((files("plugin_glm4") / "core_plugin.toml").read_text())
    stated = {row["name"]: set(row["capabilities"]["state_kinds"]) for row in manifest["plugin"]}
    configs = {"Glm4ForCausalLM": GLM4_9B, "Glm4MoeForCausalLM": GLM45, "Glm4MoeLiteForCausalLM": FLASH}
    assert stated == {n: {str(g.kind) for g in points[n].spec(configs[n]).cache_groups} for n in points}


def test_reads_glm4_9b() -> None:
    spec = Glm4Arch.spec(GLM4_9B)
    config = spec.arch
    assert (config.rope.rotary_dim, config.rope_interleaved, config.sandwich) == (64, True, True)
    assert (config.moe, config.latent, config.attention_bias) == (None, None, False)
    assert spec.eos_token_ids == (151329, 151336, 151338)
    assert Glm4Arch.spec({k: v for k, v in GLM4_9B.items() if k != "attention_bias"}).arch.attention_bias


def test_reads_glm45() -> None:
    spec = Glm4MoeArch.spec(GLM45)
    config = spec.arch
    assert (config.rope.rotary_dim, config.rope_interleaved, config.rope.theta) == (64, False, 1e6)
    assert (config.qk_norm, config.attention_bias, config.num_mtp_layers) == (True, True, 1)
    router = config.moe.router
    assert (router.num_experts, router.top_k, router.scale, router.renormalize) == (160, 8, 2.5, True)
    assert (router.scoring, router.correction_bias, router.float32) == ("sigmoid", True, True)
    assert config.moe.sparse_layers == frozenset(range(3, 92))
    assert config.moe.shared_intermediate_size == 1536


def test_reads_glm47_flash() -> None:
    spec = Glm4MoeLiteArch.spec(FLASH)
    (group,) = spec.cache_groups
    assert (group.kind, len(group.layers)) == (StateKind.MLA_LATENT, 47)
    for ranks in (1, 4):
        assert group.elements_per_token(ranks) == 47 * (512 + 64)
    rule = spec.layers[0].attention
    assert rule is not None
    assert (rule.head_dim, rule.v_head_dim, rule.num_kv_heads) == (256, 256, 1)
    assert rule.scale == 1 / 16  # no scaling of positions, hence none of the scale
    assert (spec.arch.rope.rotary_dim, spec.arch.rope.kind, spec.arch.rope_interleaved) == (64, "default", True)
    assert spec.arch.moe.sparse_layers == frozenset(range(1, 47))
    assert (spec.context_length, spec.dtype) == (202752, "bfloat16")


@pytest.mark.parametrize(
    ("arch", "config", "hf"), [(Glm4MoeArch, GLM45, "Glm4MoeConfig"), (Glm4MoeLiteArch, FLASH, "Glm4MoeLiteConfig")]
)
def test_both_layouts_read_alike(arch: type[ModelArch], config: dict[str, Any], hf: str) -> None:
    """config.json as it is on the hub, and as transformers 5 writes it again."""
    if not hasattr(transformers, hf):
        pytest.skip(f"this transformers has no {hf}")
    again = getattr(transformers, hf)(**config).to_dict()
    assert ("rope_theta" in again) == transformers.__version__.startswith("4.")
    assert arch.spec(again) == arch.spec(config)


def test_layouts_by_hand() -> None:
    other = {k: v for k, v in FLASH.items() if k not in ("n_routed_experts", "first_k_dense_replace", "rope_theta")}
    other |= {
        "num_local_experts": 64,
        "mlp_layer_types": ["dense"] + ["sparse"] * 46,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "torch_dtype": other.pop("dtype"),
        "num_mtp_layers": other.pop("num_nextn_predict_layers"),
    }
    assert Glm4MoeLiteArch.spec(other) == Glm4MoeLiteArch.spec(FLASH)


def test_yarn_with_mscale_sharpens_the_scale() -> None:
    yarn = {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale_all_dim": 1.0}
    rule = Glm4MoeLiteArch.spec({**FLASH, "rope_scaling": yarn}).layers[0].attention
    assert rule is not None
    assert rule.scale == pytest.approx((0.1 * 3.6888794541139363 + 1) ** 2 / 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 200}, "num_experts_per_tok = 200 exceeds n_routed_experts = 64"),
        ({"n_group": 7}, "n_group = 7 does not divide n_routed_experts = 64"),
        ({"n_group": 2, "topk_group": 3}, "topk_group = 3 exceeds n_group = 2"),
        ({"n_routed_experts": None}, "n_routed_experts is missing"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({"kv_lora_rank": 0}, "kv_lora_rank = 0"),
        ({"q_lora_rank": "wide"}, "q_lora_rank = 'wide'"),
        ({"qk_nope_head_dim": None}, "qk_nope_head_dim is missing"),
        ({"qk_rope_head_dim": 63}, "turns 63 dims"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor turns 32 of qk_rope_head_dim = 64"),
        ({"num_key_value_heads": 4}, "num_key_value_heads = 4 differs from num_attention_heads = 20"),
        ({"mlp_layer_types": ["dense"]}, "mlp_layer_types = "),
        ({"scoring_func": "softmax"}, "scoring_func = 'softmax'"),
        ({"topk_method": "greedy"}, "topk_method = 'greedy'"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers = -1"),
        ({"rope_interleave": "yes"}, "rope_interleave = 'yes'"),
    ],
)
def test_bad_field_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Glm4MoeLiteArch.spec({**FLASH, **changes})


@pytest.mark.parametrize(
    ("arch", "config", "tools", "reasoning"),
    [
        (Glm4Arch, GLM4_9B, None, None),
        (Glm4MoeArch, GLM45, "glm45", "glm45"),
        (Glm4MoeLiteArch, FLASH, "glm47", "glm45"),
    ],
)
def test_parser_wishes(arch: type[ModelArch], config: dict[str, Any], tools: str | None, reasoning: str | None) -> None:
    wishes = arch.defaults(arch.spec(config), "cpu")
    assert (wishes.tool_parser, wishes.reasoning_parser) == (tools, reasoning)


def test_the_plugin_itself_needs_no_torch() -> None:
    code = "import sys, plugin_glm4.arch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
