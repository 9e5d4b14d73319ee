"""GLM-4 checkpoints through the whole engine, beside transformers: greedy texts, batches, prefix-cache hits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from glm4_cases import need_lite
from transformers import AutoModelForCausalLM

from core.llm import LLM
from core.testing.checkpoint import write_tiny_checkpoint

EXPERTS: dict[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
TINY: dict[str, dict[str, Any]] = {
    "glm4": {"head_dim": 16},
    "glm4_moe": {"head_dim": 16, **EXPERTS},
    "glm4_moe_lite": {**EXPERTS, **LATENT},
}
NUM_TOKENS = 64
GREEDY = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True}


def start(folder: Path, **settings: Any) -> LLM:
    return LLM(str(folder), device="cpu", page_size=8, max_total_tokens=4096, **settings)


def prompts(lengths: list[int], vocab_size: int = 300) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(10, vocab_size, (n,), generator=generator).tolist() for n in lengths]


def reference(folder: Path, prompt: list[int]) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NUM_TOKENS)
    return [int(token) for token in out[0, len(prompt) :]]


@pytest.mark.parametrize("model_type", ["glm4", "glm4_moe", "glm4_moe_lite"])
def test_greedy_texts_equal_those_of_transformers(tmp_path: Path, model_type: str) -> None:
    if model_type == "glm4_moe_lite":
        need_lite()
    folder = write_tiny_checkpoint(tmp_path, model_type, pad_token_id=0, **TINY[model_type])
    given = prompts([30, 5, 1, 47])
    with start(folder, chunked_prefill_size=16) as llm:  # long prompts are mixed with decodes, chunk by chunk
        outputs = llm.generate(given, GREEDY)
    for prompt, output in zip(given, outputs, strict=True):
        assert output.token_ids == reference(folder, prompt)


def test_latent_prefix_hits_give_the_same_tokens(tmp_path: Path) -> None:
    need_lite()
    folder = write_tiny_checkpoint(tmp_path, "glm4_moe_lite", **TINY["glm4_moe_lite"])
    (prompt, tail) = prompts([40, 9])
    with start(folder) as llm:
        first = llm.generate([prompt], GREEDY)[0]
        again = llm.generate([prompt], GREEDY)[0]
        longer = llm.generate([prompt + first.token_ids[:20] + tail], GREEDY)[0]
        others = llm.generate([prompt[:32] + tail, prompt[:17] + tail], GREEDY)
    with start(folder, prefix_cache="none") as llm:
        fresh = llm.generate(
            [prompt, prompt + first.token_ids[:20] + tail, prompt[:32] + tail, prompt[:17] + tail], GREEDY
        )
    assert [output.cached_tokens for output in fresh] == [0, 0, 0, 0]
    assert [output.cached_tokens for output in (first, again, longer, *others)] == [0, 32, 56, 32, 16]
    for hit, miss in zip((first, longer, *others), fresh, strict=True):
        assert hit.token_ids == miss.token_ids
    assert again.token_ids == first.token_ids


def test_the_memory_plan_counts_latents(tmp_path: Path) -> None:
    need_lite()
    folder = write_tiny_checkpoint(tmp_path, "glm4_moe_lite", **TINY["glm4_moe_lite"])
    with start(folder) as llm:
        engine = llm._engine.engine
        (buffers,) = {tuple(b.shape[1] for b in layer) for layer in engine.executor.runner._kv}
    assert buffers == (32 + 8,)
