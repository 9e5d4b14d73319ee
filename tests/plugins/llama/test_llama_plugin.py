"""plugin-llama as core sees it: entry points, manifest, config.json."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from importlib.resources import files
from typing import Any

import pytest

from core.interfaces.errors import CheckpointError
from core.interfaces.model import ModelArch
from core.interfaces.spec import StateKind
from plugin_llama.arch import LlamaArch, MistralArch

# config.json of Llama-3.1-8B in the layout of transformers 4.
LLAMA_31: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def test_entry_points_and_manifest_name_the_same() -> None:
    points = {p.name: p.load() for p in distribution("plugin-llama").entry_points if p.group == "core.models"}
    assert points == {"LlamaForCausalLM": LlamaArch, "MistralForCausalLM": MistralArch}
    assert all(issubclass(arch, ModelArch) for arch in points.values())
    manifest = tomllib.loads((files("plugin_llama") / "core_plugin.toml").read_text())
    assert {row["name"] for row in manifest["plugin"]} == set(points)
    assert {row["kind"] for row in manifest["plugin"]} == {"models"}


def test_reads_llama_31() -> None:
    spec = LlamaArch.spec(LLAMA_31)
    assert spec.architecture == "LlamaForCausalLM"
    assert (spec.vocab_size, spec.hidden_size, len(spec.layers)) == (128256, 4096, 32)
    assert spec.context_length == 131072
    assert spec.dtype == "bfloat16"
    assert spec.eos_token_ids == (128001, 128008, 128009)
    (group,) = spec.cache_groups
    assert (group.kind, group.num_kv_heads, group.head_dim) == (StateKind.FULL, 8, 128)
    assert group.elements_per_token() == 32 * 8 * 128 * 2
    assert spec.arch.rope.kind == "llama3"
    assert spec.arch.rope.theta == 500000.0


def test_llama_knows_no_window_and_mistral_does() -> None:
    config = {**LLAMA_31, "sliding_window": 4096}
    assert [g.window for g in LlamaArch.spec(config).cache_groups] == [None]
    (group,) = MistralArch.spec(config).cache_groups
    assert (group.kind, group.window) == (StateKind.SLIDING_WINDOW, 4096)
    assert [g.window for g in MistralArch.spec(LLAMA_31).cache_groups] == [4096]
    assert [g.window for g in MistralArch.spec({**config, "sliding_window": None}).cache_groups] == [None]
    types = ["full_attention", "sliding_attention"] * 16
    assert [g.window for g in MistralArch.spec({**config, "layer_types": types}).cache_groups] == [None, 4096]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None),
        ("num_hidden_layers", 0),
        ("num_key_value_heads", 5),
        ("vocab_size", "many"),
        ("hidden_act", "relu"),
        ("rms_norm_eps", "x"),
        ("tie_word_embeddings", "yes"),
        ("max_position_embeddings", -1),
        ("rope_scaling", {"type": "spiral"}),
    ],
)
def test_bad_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        LlamaArch.spec({**LLAMA_31, field: value})
    assert "config.json" in str(caught.value)
    named = {"rope_scaling": "spiral"}.get(field, field)
    assert named in str(caught.value)


def test_the_plugin_itself_needs_no_torch() -> None:
    code = "import sys, plugin_llama.arch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
