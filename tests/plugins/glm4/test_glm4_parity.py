"""GLM-4, GLM-4-MoE and GLM-4-MoE-Lite against transformers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from glm4_cases import DenseAttention, check_all, glm4, glm4_moe, glm4_moe_lite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity import ParityCase, check_ranks

from core.attention.torch_native import TorchNativeAttention
from core.hardware.cpu import CpuBackend
from core.interfaces.context import PluginContext
from core.interfaces.spec import StateKind
from core.ops.table import build_ops
from plugin_glm4.arch import Glm4Arch, Glm4MoeArch, Glm4MoeLiteArch

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize("changes", [{"attention_bias": False}, {"tie_word_embeddings": True}])
def test_glm4(tmp_path: Path, changes: dict[str, Any]) -> None:
    case = glm4(tmp_path, **changes)
    check_all(case)
    case.check_greedy(9)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_qk_norm": True, "attention_bias": True, "first_k_dense_replace": 2},
        {"n_group": 3, "topk_group": 2, "norm_topk_prob": False, "n_shared_experts": 2, "tie_word_embeddings": True},
    ],
)
def test_glm4_moe(tmp_path: Path, changes: dict[str, Any]) -> None:
    case = glm4_moe(tmp_path, **changes)
    check_all(case)
    case.check_greedy(9)


@pytest.mark.parametrize("backend", [TorchNativeAttention, DenseAttention])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": None, "rope_interleave": False, "tie_word_embeddings": True},
        {"attention_bias": True, "mlp_layer_types": ["sparse", "dense", "sparse"]},
        {"rope_parameters": {**YARN, "mscale": 0.8, "mscale_all_dim": 1.2}, "n_group": 2, "topk_group": 1},
    ],
)
def test_glm4_moe_lite(tmp_path: Path, changes: dict[str, Any], backend: Any) -> None:
    case = glm4_moe_lite(tmp_path, backend=backend, **changes)
    (group,) = case.spec.cache_groups
    assert (group.kind, group.num_kv_heads, group.head_dim, group.v_head_dim) == (StateKind.MLA_LATENT, 1, 14, 4)
    check_all(case)
    case.check_greedy(17)


def test_chunks_that_are_absorbed_and_expanded(tmp_path: Path) -> None:
    """Long enough that a chunk goes either way (and that queries outnumber what a small mask takes)."""
    case = glm4_moe_lite(tmp_path, kv_lora_rank=64, page_size=16)
    case.check_chunked([90, 3, 120, 20])


def test_with_the_operations_of_the_cpu(tmp_path: Path) -> None:
    ops = build_ops(CpuBackend(PluginContext()).ops())
    for make, arch in ((glm4, Glm4Arch), (glm4_moe, Glm4MoeArch), (glm4_moe_lite, Glm4MoeLiteArch)):
        folder = tmp_path / arch.__name__
        case = ParityCase(make(folder).hf, folder, arch, save=False, backend=TorchNativeAttention, ops=ops)
        check_all(case)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_equal_one(tmp_path: Path, size: int) -> None:
    sizes: dict[str, Any] = {"moe_intermediate_size": 12, "tie_word_embeddings": True}
    for make, arch, changes in (
        (glm4, Glm4Arch, {"tie_word_embeddings": True}),
        (glm4_moe, Glm4MoeArch, {**sizes, "attention_bias": True, "use_qk_norm": True}),
    ):
        whole = make(tmp_path / arch.__name__, **changes)
        check_ranks(whole, tmp_path / arch.__name__, arch, size)


@pytest.mark.parametrize("size", [2, 4])
def test_latent_ranks_equal_one(tmp_path: Path, size: int) -> None:
    whole = glm4_moe_lite(tmp_path, backend=DenseAttention, moe_intermediate_size=12, attention_bias=True)
    check_ranks(whole, tmp_path, Glm4MoeLiteArch, size, backend=DenseAttention)


@st.composite
def odd_sizes(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * 2 * draw(st.sampled_from([2, 5, 8])),
        "intermediate_size": draw(st.integers(1, 50)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "vocab_size": draw(st.integers(2, 70)),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "page_size": draw(st.sampled_from([1, 3, 4, 16])),
        "seed": draw(st.integers(0, 999)),
    }


@st.composite
def odd_experts(draw: st.DrawFn) -> dict[str, Any]:
    groups, size = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    topk_groups = draw(st.integers(1, groups))
    return {
        "n_routed_experts": groups * size,
        "n_group": groups,
        "topk_group": topk_groups,
        "num_experts_per_tok": draw(st.integers(1, topk_groups * size)),
        "moe_intermediate_size": draw(st.integers(2, 20)),
        "n_shared_experts": draw(st.integers(1, 2)),
        "norm_topk_prob": draw(st.booleans()),
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
    }


@st.composite
def odd_latents(draw: st.DrawFn) -> dict[str, Any]:
    """Not narrower than five: a norm over one or two numbers is a sign, and no float32 agrees with another near 0."""
    layers = draw(st.integers(1, 3))
    heads = draw(st.integers(1, 5))
    return {
        "num_hidden_layers": layers,
        "mlp_layer_types": draw(st.lists(st.sampled_from(["dense", "sparse"]), min_size=layers, max_size=layers)),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": draw(st.sampled_from([None, 5, 15])),
        "kv_lora_rank": draw(st.integers(5, 40)),
        "qk_nope_head_dim": draw(st.integers(1, 12)),
        "qk_rope_head_dim": draw(st.sampled_from([2, 4, 10])),
        "v_head_dim": draw(st.integers(1, 20)),
        "rope_interleave": draw(st.booleans()),
    }


@st.composite
def odd_heads(draw: st.DrawFn) -> dict[str, Any]:
    partial = draw(st.sampled_from([0.25, 0.5, 1.0]))
    return {
        "head_dim": draw(st.sampled_from([8, 12, 16])) if partial != 0.25 else draw(st.sampled_from([8, 16])),
        "rope_theta": draw(st.sampled_from([100.0, 1e6])),
        "partial_rotary_factor": partial,
    }


Odd = tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]


def check_odd(odd: Odd) -> None:
    sizes, heads, experts, latent, more = odd
    with tempfile.TemporaryDirectory() as name:
        check_all(glm4(Path(name), **sizes, **heads))
    with tempfile.TemporaryDirectory() as name:
        check_all(glm4_moe(Path(name), **sizes, **heads, **experts, **more))
    with tempfile.TemporaryDirectory() as name:
        check_all(glm4_moe_lite(Path(name), **{**sizes, **experts, **latent}))


MORE = st.fixed_dictionaries({"first_k_dense_replace": st.integers(0, 3), "use_qk_norm": st.booleans()})
ODD = st.tuples(odd_sizes(), odd_heads(), odd_experts(), odd_latents(), MORE)


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(ODD)
def test_odd_configurations(odd: Odd) -> None:
    check_odd(odd)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(ODD)
def test_many_odd_configurations(odd: Odd) -> None:
    check_odd(odd)
