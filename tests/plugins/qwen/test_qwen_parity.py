"""Qwen 2, 3 and 3-MoE against transformers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity import ParityCase, check_ranks
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from core.attention.torch_native import TorchNativeAttention
from core.hardware.cpu import CpuBackend
from core.interfaces.context import PluginContext
from core.ops.table import build_ops
from plugin_qwen.arch import Qwen2Arch, Qwen3Arch, Qwen3MoeArch

BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attn_implementation": "eager",
}
MOE: dict[str, Any] = {
    # Transformers' grouped product on the CPU asks for sizes that are multiples of 16 bytes.
    "experts_implementation": "eager",
    "head_dim": 12,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 10,
    "norm_topk_prob": True,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def qwen2(folder: Path, page_size: int = 4, seed: int = 0, **changes: Any) -> ParityCase:
    model = Qwen2ForCausalLM(Qwen2Config(**{**BASE, **changes}))
    return ParityCase(model, folder, Qwen2Arch, page_size=page_size, seed=seed)


def qwen3(folder: Path, page_size: int = 4, seed: int = 0, **changes: Any) -> ParityCase:
    model = Qwen3ForCausalLM(Qwen3Config(**{**BASE, "head_dim": 12, **changes}))
    return ParityCase(model, folder, Qwen3Arch, page_size=page_size, seed=seed)


def qwen3_moe(folder: Path, page_size: int = 4, seed: int = 0, **changes: Any) -> ParityCase:
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**BASE, **MOE, **changes}))
    return ParityCase(model, folder, Qwen3MoeArch, page_size=page_size, seed=seed)


def test_with_cores_own_attention_and_cpu_operations(tmp_path: Path) -> None:
    split = qwen3_moe(tmp_path, use_sliding_window=True, sliding_window=4)
    ops = build_ops(CpuBackend(PluginContext()).ops())
    case = ParityCase(split.hf, tmp_path, Qwen3MoeArch, save=False, backend=TorchNativeAttention, ops=ops)
    check_all(case)
    case.check_greedy(17)


def check_all(case: ParityCase) -> None:
    case.check_prefill(19)
    case.check_chunked([5, 1, 9, 4])
    case.check_shared_prefix(2, 3)
    case.check_mixed([7, 2, 1, 11])


@pytest.mark.parametrize("tied", [False, True])
def test_qwen2(tmp_path: Path, tied: bool) -> None:
    case = qwen2(tmp_path, tie_word_embeddings=tied, rope_theta=1e6)
    check_all(case)
    case.check_greedy(9)


def test_qwen2_windows_above_a_layer(tmp_path: Path) -> None:
    case = qwen2(tmp_path, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    assert [(group.window, group.layers) for group in case.spec.cache_groups] == [(None, (0,)), (5, (1, 2))]
    check_all(case)
    case.check_greedy(12)


def test_sliding_window_switched_off(tmp_path: Path) -> None:
    case = qwen2(tmp_path, use_sliding_window=False, sliding_window=5, max_window_layers=0)
    assert [group.window for group in case.spec.cache_groups] == [None]
    case.check_prefill(12)


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "tie_word_embeddings": True}, {"rope_scaling": YARN}])
def test_qwen3(tmp_path: Path, changes: dict[str, Any]) -> None:
    case = qwen3(tmp_path, **changes)
    check_all(case)
    case.check_greedy(9)


def test_qwen3_alternating_windows(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    case = qwen3(tmp_path, use_sliding_window=True, sliding_window=3, layer_types=types)
    assert [(group.window, group.layers) for group in case.spec.cache_groups] == [(3, (0, 2)), (None, (1,))]
    check_all(case)
    case.check_greedy(9)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_topk_prob": False, "num_experts_per_tok": 6},
        {"mlp_only_layers": [1], "tie_word_embeddings": True},
        {"decoder_sparse_step": 2, "attention_bias": True},
        {"use_sliding_window": True, "sliding_window": 4},
    ],
)
def test_qwen3_moe(tmp_path: Path, changes: dict[str, Any]) -> None:
    case = qwen3_moe(tmp_path, **changes)
    check_all(case)
    case.check_greedy(9)


def test_stacked_expert_tensors(tmp_path: Path) -> None:
    """The same checkpoint with all experts of a layer in one tensor, as transformers holds them in memory."""
    split = qwen3_moe(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(file).items()}
    experts = range(MOE["num_experts"])
    for layer in range(BASE["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.mlp.experts"
        parts = {p: [tensors.pop(f"{prefix}.{e}.{p}_proj.weight") for e in experts] for p in ("gate", "up", "down")}
        gate_up = [torch.cat(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
        tensors[f"{prefix}.gate_up_proj"] = torch.stack(gate_up)
        tensors[f"{prefix}.down_proj"] = torch.stack(parts["down"])
    save_file(tensors, file)
    stacked = ParityCase(split.hf, tmp_path, Qwen3MoeArch, save=False)
    stacked.check_prefill(11)
    assert stacked.report.num_tensors < split.report.num_tensors


def test_ranks_equal_one(tmp_path: Path) -> None:
    whole = qwen3_moe(tmp_path, mlp_only_layers=[1], tie_word_embeddings=True)
    check_ranks(whole, tmp_path, Qwen3MoeArch, 2)


@st.composite
def odd_qwens(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    layers = draw(st.integers(1, 3))
    windows = draw(st.booleans())
    changes: dict[str, Any] = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * 2 * draw(st.sampled_from([2, 5, 8])),
        "intermediate_size": draw(st.integers(1, 50)),
        "num_hidden_layers": layers,
        "vocab_size": draw(st.integers(2, 70)),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from([100.0, 1e6])),
        "rope_scaling": draw(st.sampled_from([None, YARN, {"rope_type": "dynamic", "factor": 2.0}])),
        "page_size": draw(st.sampled_from([1, 3, 4, 16])),
        "seed": draw(st.integers(0, 999)),
        "use_sliding_window": windows,
        "sliding_window": draw(st.sampled_from([1, 2, 7, 30])),
        "max_window_layers": draw(st.integers(0, 3)),
    }
    return changes


@st.composite
def odd_experts(draw: st.DrawFn) -> dict[str, Any]:
    experts = draw(st.integers(1, 7))
    return {
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "moe_intermediate_size": draw(st.integers(2, 20)),
        "norm_topk_prob": draw(st.booleans()),
        "decoder_sparse_step": draw(st.integers(1, 3)),
        "mlp_only_layers": draw(st.lists(st.integers(0, 2), max_size=2, unique=True)),
    }


def check_odd(changes: dict[str, Any], head_dim: int, bias: bool, experts: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        check_all(qwen2(Path(name), **changes))
    with tempfile.TemporaryDirectory() as name:
        check_all(qwen3(Path(name), head_dim=head_dim, attention_bias=bias, **changes))
    changes = {k: v for k, v in changes.items() if k != "max_window_layers"}
    with tempfile.TemporaryDirectory() as name:
        check_all(qwen3_moe(Path(name), head_dim=head_dim, attention_bias=bias, **experts, **changes))


HEAD_DIMS = st.sampled_from([4, 6, 10, 16])


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(odd_qwens(), HEAD_DIMS, st.booleans(), odd_experts())
def test_odd_configurations(changes: dict[str, Any], head_dim: int, bias: bool, experts: dict[str, Any]) -> None:
    check_odd(changes, head_dim, bias, experts)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(odd_qwens(), HEAD_DIMS, st.booleans(), odd_experts())
def test_many_odd_configurations(changes: dict[str, Any], head_dim: int, bias: bool, experts: dict[str, Any]) -> None:
    check_odd(changes, head_dim, bias, experts)
