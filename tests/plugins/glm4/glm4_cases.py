"""Small GLM-4 models of every architecture beside transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from parity import ParityCase
from transformers import Glm4Config, Glm4ForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM

from core.attention.torch_native import TorchNativeAttention
from core.testing.dense_attention import DenseAttention
from plugin_glm4.arch import Glm4Arch, Glm4MoeArch, Glm4MoeLiteArch

BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attn_implementation": "eager",
    "eos_token_id": 1,
    "pad_token_id": 0,
}
MOE: dict[str, Any] = {
    # Transformers' grouped product on the CPU asks for sizes that are multiples of 16 bytes.
    "experts_implementation": "eager",
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 10,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.8,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 14,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
}


def need_lite() -> None:
    if not hasattr(transformers, "Glm4MoeLiteConfig"):
        pytest.skip("this transformers has no Glm4MoeLite to compare with: version 5 has")


def bias_experts(model: Any, seed: int) -> None:
    """Correction biases that change choices (they are buffers, and zero in a fresh model)."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.2)


def glm4(folder: Path, page_size: int = 4, seed: int = 0, **changes: Any) -> ParityCase:
    model = Glm4ForCausalLM(Glm4Config(**{**BASE, "head_dim": 12, **changes}))
    return ParityCase(model, folder, Glm4Arch, page_size=page_size, seed=seed)


def glm4_moe(folder: Path, page_size: int = 4, seed: int = 0, **changes: Any) -> ParityCase:
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**{**BASE, **MOE, "head_dim": 12, **changes}))
    bias_experts(model, seed)
    return ParityCase(model, folder, Glm4MoeArch, page_size=page_size, seed=seed)


def glm4_moe_lite(
    folder: Path, page_size: int = 4, seed: int = 0, backend: Any = TorchNativeAttention, **changes: Any
) -> ParityCase:
    need_lite()
    config = transformers.Glm4MoeLiteConfig(**{**BASE, **MOE, **LATENT, **changes})
    model = transformers.Glm4MoeLiteForCausalLM(config)
    bias_experts(model, seed)
    return ParityCase(model, folder, Glm4MoeLiteArch, page_size=page_size, seed=seed, backend=backend)


def check_all(case: ParityCase) -> None:
    case.check_prefill(19)
    case.check_chunked([5, 1, 9, 4])
    case.check_shared_prefix(2, 3)
    case.check_mixed([7, 2, 1, 11])


__all__ = ["BASE", "LATENT", "MOE", "DenseAttention", "check_all", "glm4", "glm4_moe", "glm4_moe_lite"]
