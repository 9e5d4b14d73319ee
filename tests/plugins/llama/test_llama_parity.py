"""Llama and Mistral against transformers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity import ParityCase, check_ranks
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from core.attention.torch_native import TorchNativeAttention
from core.hardware.cpu import CpuBackend
from core.interfaces.context import PluginContext
from core.ops.table import build_ops
from plugin_llama.arch import LlamaArch, MistralArch

BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attn_implementation": "eager",
}
SCALINGS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
    {"rope_type": "yarn", "factor": 2.0, "beta_fast": 8.0, "mscale": 0.7, "mscale_all_dim": 1.2},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
)


def llama(folder: Path, page_size: int = 4, seed: int = 0, **changes: Any) -> ParityCase:
    config = LlamaConfig(**{**BASE, **changes})
    return ParityCase(LlamaForCausalLM(config), folder, LlamaArch, page_size=page_size, seed=seed)


def mistral(folder: Path, page_size: int = 4, seed: int = 0, **changes: Any) -> ParityCase:
    config = MistralConfig(**{**BASE, **changes})
    return ParityCase(MistralForCausalLM(config), folder, MistralArch, page_size=page_size, seed=seed)


def test_with_cores_own_attention_and_cpu_operations(tmp_path: Path) -> None:
    reference = llama(tmp_path)
    ops = build_ops(CpuBackend(PluginContext()).ops())
    case = ParityCase(reference.hf, tmp_path, LlamaArch, save=False, backend=TorchNativeAttention, ops=ops)
    check_all(case)
    case.check_greedy(17)


def check_all(case: ParityCase) -> None:
    case.check_prefill(19)
    case.check_chunked([5, 1, 9, 4])
    case.check_shared_prefix(2, 3)
    case.check_mixed([7, 2, 1, 11])


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"] if s else "default")
def test_llama_with_each_rope_scaling(tmp_path: Path, scaling: dict[str, Any] | None) -> None:
    case = llama(tmp_path, rope_scaling=scaling, rope_theta=500.0)
    check_all(case)
    case.check_greedy(9)


def test_dynamic_rope_beyond_the_original_length(tmp_path: Path) -> None:
    case = llama(
        tmp_path, rope_scaling={"rope_type": "dynamic", "factor": 3.0}, max_position_embeddings=32, rope_theta=50.0
    )
    assert case.spec.context_length == 96
    case.check_greedy(20, 64)


def test_llama_biases_tied_and_head_dim(tmp_path: Path) -> None:
    case = llama(tmp_path, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=12)
    check_all(case)
    case.check_greedy(5)


def test_gelu_variant(tmp_path: Path) -> None:
    llama(tmp_path, hidden_act="gelu_pytorch_tanh").check_prefill(8)


@pytest.mark.parametrize("window", [None, 5, 64])
def test_mistral_windows(tmp_path: Path, window: int | None) -> None:
    case = mistral(tmp_path, sliding_window=window, head_dim=10)
    assert case.spec.cache_groups[0].window == window
    check_all(case)
    case.check_greedy(12)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_equal_one(tmp_path: Path, size: int) -> None:
    """Odd vocabulary (padded on the last rank), biases, and KV heads replicated when there are four ranks."""
    whole = llama(tmp_path, attention_bias=True, mlp_bias=True)
    check_ranks(whole, tmp_path, LlamaArch, size)


@st.composite
def odd_llamas(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(st.integers(2, 9)),
        "hidden_size": heads * draw(st.sampled_from([3, 8, 11])),
        "intermediate_size": draw(st.integers(1, 50)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "vocab_size": draw(st.integers(2, 70)),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from([100.0, 10000.0])),
        "rope_scaling": draw(st.sampled_from(SCALINGS)),
        "page_size": draw(st.sampled_from([1, 3, 4, 16])),
        "seed": draw(st.integers(0, 999)),
    }


def check_odd(changes: dict[str, Any], window: int | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        check_all(llama(Path(name), **changes))
    changes = {k: v for k, v in changes.items() if k not in ("attention_bias", "mlp_bias")}
    with tempfile.TemporaryDirectory() as name:
        check_all(mistral(Path(name), sliding_window=window, **changes))


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(odd_llamas(), st.sampled_from([None, 1, 2, 7, 30]))
def test_odd_configurations(changes: dict[str, Any], window: int | None) -> None:
    check_odd(changes, window)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(odd_llamas(), st.sampled_from([None, 1, 2, 7, 30]))
def test_many_odd_configurations(changes: dict[str, Any], window: int | None) -> None:
    check_odd(changes, window)
