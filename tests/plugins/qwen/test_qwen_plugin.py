"""plugin-qwen as core sees it: entry points, manifest, config.json."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from importlib.resources import files
from typing import Any

import pytest

from core.interfaces.errors import CheckpointError
from plugin_qwen.arch import (
    Qwen2Arch,
    Qwen2ClassifierArch,
    Qwen2HeadlessArch,
    Qwen3Arch,
    Qwen3ClassifierArch,
    Qwen3HeadlessArch,
    Qwen3MoeArch,
)

# config.json of Qwen3-30B-A3B in the layout of transformers 4.
QWEN3_30B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_entry_points_and_manifest_name_the_same() -> None:
    points = {p.name: p.load() for p in distribution("plugin-qwen").entry_points if p.group == "core.models"}
    assert points == {
        "Qwen2ForCausalLM": Qwen2Arch,
        "Qwen3ForCausalLM": Qwen3Arch,
        "Qwen3MoeForCausalLM": Qwen3MoeArch,
        "Qwen2Model": Qwen2HeadlessArch,
        "Qwen3Model": Qwen3HeadlessArch,
        "Qwen2ForSequenceClassification": Qwen2ClassifierArch,
        "Qwen3ForSequenceClassification": Qwen3ClassifierArch,
    }
    manifest = tomllib.loads((files("plugin_qwen") / "core_plugin.toml").read_text())
    assert {row["name"] for row in manifest["plugin"]} == set(points)


def test_reads_qwen3_30b() -> None:
    spec = Qwen3MoeArch.spec(QWEN3_30B)
    assert (spec.num_experts, spec.arch.moe.top_k, spec.arch.moe.intermediate_size) == (128, 8, 768)
    assert spec.arch.moe.sparse_layers == frozenset(range(48))
    assert spec.cache_groups[0].head_dim == 128
    assert spec.arch.qk_norm
    renamed = {k: v for k, v in QWEN3_30B.items() if k != "num_experts"} | {"num_local_experts": 64}
    assert Qwen3MoeArch.spec(renamed).num_experts == 64


def test_biases() -> None:
    dense = {k: v for k, v in QWEN3_30B.items() if k != "head_dim"}
    two, three = Qwen2Arch.spec(dense), Qwen3Arch.spec({**dense, "attention_bias": True})
    assert (two.arch.qkv_bias, two.arch.out_bias, two.arch.qk_norm) == (True, False, False)
    assert (three.arch.qkv_bias, three.arch.out_bias, three.arch.qk_norm) == (True, True, True)
    assert two.cache_groups[0].head_dim == 64
    assert three.cache_groups[0].head_dim == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 200}, "num_experts_per_tok = 200 exceeds num_experts = 128"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({"mlp_only_layers": "all"}, "mlp_only_layers = 'all'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step = 0"),
        ({"use_sliding_window": 1}, "use_sliding_window = 1"),
    ],
)
def test_bad_field_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Qwen3MoeArch.spec({**QWEN3_30B, **changes})


def test_layer_types_without_a_window() -> None:
    with pytest.raises(CheckpointError, match="sliding_window is null or switched off"):
        Qwen3Arch.spec({**QWEN3_30B, "layer_types": ["sliding_attention"] * 48, "sliding_window": 8})


def test_the_plugin_itself_needs_no_torch() -> None:
    code = "import sys, plugin_qwen.arch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
