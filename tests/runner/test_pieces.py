"""Steps recorded in pieces: with real models, on a device that keeps nothing which a graph would not keep, whatever mix
of prefills, chunks, cached prefixes and decodes comes, answers are those of launched steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from core.attention.torch_native import TorchNativeAttention
from core.engine.client import EngineRequest, TokenChunk
from core.engine.offline import OfflineEngine
from core.interfaces.attention import TokenRows
from core.interfaces.batch import BatchLayout
from core.interfaces.params import SamplingParams
from core.ops import reference
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.runner.runner import ModelRunner
from core.testing.capturable_attention import CapturableAttention
from core.testing.mock_engine import build_in_process, catalog_with, write_config
from core.testing.mock_graphs import MockGraphHardware
from core.testing.mock_vendor import VendorMoe
from plugin_demo import checkpoint

VOCAB = 96
SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 40, "vocab_size": VOCAB, "max_position_embeddings": 128, "torch_dtype": "float32",
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 12, "norm_topk_prob": True}
LATENT: dict[str, Any] = {
    "q_lora_rank": 12, "kv_lora_rank": 14, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 7,
    "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "routed_scaling_factor": 1.8,
}  # fmt: skip
# Name -> config.json, and settings of the engine.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": ({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SMALL}, {}),
    "windows": (
        {
            "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], **SMALL, "query_pre_attn_scalar": 20,
            "sliding_window": 6, "attn_logit_softcapping": None, "final_logit_softcapping": 2.0,
        },
        {"attention_backend": "torch_native"},
    ),
    "experts": (
        {
            "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], **SMALL, **EXPERTS, "num_experts": 4,
            "mlp_only_layers": [0],
        },
        {},
    ),
    "latents": (
        {"model_type": "glm4_moe_lite", "architectures": ["Glm4MoeLiteForCausalLM"], **SMALL, **EXPERTS, **LATENT},
        {"attention_backend": "torch_native"},
    ),
    "fp8": (
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], **SMALL},
        {"quantization": "fp8", "attention_backend": "torch_native"},
    ),
}  # fmt: skip


class Hardware(MockGraphHardware):
    """`token_sizes`, `on_demand` and `fused` are set for each engine. fused: has an operation of its own that stores
    keys and values where the attention backend leaves it to others; stored counts its calls while steps run."""

    fused: ClassVar[bool] = False
    stored: ClassVar[list[int]] = []

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        def store(qkv: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.stored.append(len(qkv))
            return reference.qk_norm_rope_store(qkv, *args, **kwargs)

        def turn(*args: Any, **kwargs: Any) -> Any:
            return reference.qk_norm_rope(*args, **kwargs)

        return {"qk_norm_rope": turn, "qk_norm_rope_store": store} if self.fused else {}


class StoresDecodes(TorchNativeAttention):
    """Leaves storing to others in steps without decodes alone, as plugin-triton does."""

    _decodes = False

    def plan(self, layout: BatchLayout) -> None:
        self._decodes = bool(layout.num_decodes)
        super().plan(layout)

    def token_rows(self, kv: tuple[torch.Tensor, ...]) -> TokenRows | None:
        return None if self._decodes else super().token_rows(kv)


class StoresPrompts(TorchNativeAttention):
    """Wants the keys of prompts that begin in the step, as plugin-fa3 does."""

    _begins = False

    def plan(self, layout: BatchLayout) -> None:
        self._begins = bool((layout.q_lens == layout.seq_lens).any())
        super().plan(layout)

    def token_rows(self, kv: tuple[torch.Tensor, ...]) -> TokenRows | None:
        return None if self._begins else super().token_rows(kv)


ATTENTION = {"capturable": CapturableAttention, "stores_decodes": StoresDecodes, "stores_prompts": StoresPrompts}


def build(
    folder: Path, config: dict[str, Any] | None, sizes: tuple[int, ...], on_demand: bool = False, **flat: Any
) -> Any:
    """(engine, its runner). config: None for the checkpoint that lies in the folder."""
    plugins = [
        PluginRecord(kind, name, "core-testing", "1.0", target=f"t:{name}", loaded=loaded)
        for kind, name, loaded in (
            ("hardware", "mock_graphs", Hardware),
            ("moe", "all_experts", VendorMoe),
            *(("attention", name, loaded) for name, loaded in ATTENTION.items()),
        )
    ]
    installed = [other for other in Catalog.scan().records if other.distribution != "core"]
    Hardware.token_sizes, Hardware.on_demand = sizes, on_demand
    given = {"attention_backend": "capturable", "moe_backend": "all_experts", "chunked_prefill_size": 24, **flat}
    engine = build_in_process(
        folder if config is None else write_config(folder, config),
        catalog_with([*installed, *plugins]),
        device="mock_graphs",
        **given,
    )
    executor: Any = engine.engine._executor
    runner: ModelRunner = getattr(executor, "runner", None) or executor._runner
    return engine, runner


def waves(seed: int) -> Iterator[list[EngineRequest]]:
    """Requests that come together: short and long prompts, some of which begin alike, greedy and drawn."""
    rng = random.Random(seed)
    known = [[rng.randrange(3, VOCAB) for _ in range(rng.randint(20, 50))] for _ in range(3)]
    for _ in range(3):
        wave = []
        for at in range(rng.randint(2, 6)):
            prompt = [rng.randrange(3, VOCAB) for _ in range(rng.choice((1, 2, 3, 5, 9, 17, 40)))]
            if rng.random() < 0.5:
                prompt = rng.choice(known)[: rng.randint(4, 50)] + prompt
            params = SamplingParams(
                temperature=rng.choice((0.0, 0.0, 0.8)), top_p=0.95, max_tokens=rng.randint(1, 7), ignore_eos=True,
                logprobs=2, prompt_logprobs=rng.choice((None, None, 1)),
                hidden_states=rng.choice((None, "last", "all")),
            )  # fmt: skip
            wave.append(EngineRequest(np.array(prompt, np.int32), params, seed=at))
        yield wave


def answers(engine: OfflineEngine, seed: int) -> list[TokenChunk]:
    found = [chunk for wave in waves(seed) for chunk in engine.generate(wave)]
    assert [chunk.error for chunk in found] == [None] * len(found)
    return found


def check_equal(want: TokenChunk, got: TokenChunk) -> None:
    """Tokens alike; numbers but for float32's rounding, which padding may change."""
    assert (got.tokens, got.finish_reason, got.cached_tokens) == (want.tokens, want.finish_reason, want.cached_tokens)

    def numbers(chunk: TokenChunk) -> list[list[float]]:
        values = [[top.logprob, *top.logprobs] for top in chunk.logprobs or ()]
        for extras in chunk.extras or ():
            values += [[top.logprob, *top.logprobs] for top in extras.prompt_logprobs or ()]
            values.append(np.frombuffer(extras.hidden, np.float32).tolist())
        return values

    wanted, found = numbers(want), numbers(got)
    assert [len(row) for row in found] == [len(row) for row in wanted]
    for row, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(other, row, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_launched_steps(name: str, tmp_path: Path) -> None:
    config, flat = MODELS[name]
    launched, _ = build(tmp_path, config, (), **flat)
    engines = [build(tmp_path, config, sizes, on_demand, **flat)
               for sizes, on_demand in (((4, 8, 24), False), ((3, 16), True))]  # fmt: skip
    for seed in range(3):
        wanted = answers(launched, seed)
        for engine, runner in engines:
            before = runner.stats.pieced_steps
            for want, got in zip(wanted, answers(engine, seed), strict=True):
                check_equal(want, got)
            assert runner.stats.pieced_steps > before
    assert any(chunk.cached_tokens for seed in range(3) for chunk in answers(launched, seed))


def test_a_trained_model_answers_alike(tmp_path: Path) -> None:
    flat = {"load_format": "auto", "attention_backend": "torch_native", "chunked_prefill_size": 64}
    launched, _ = build(checkpoint(), None, (), **flat)
    engine, runner = build(checkpoint(), None, (16, 64), **flat)
    for want, got in zip(answers(launched, 7), answers(engine, 7), strict=True):
        assert got.tokens == want.tokens
        for mine, other in zip(want.logprobs or (), got.logprobs or (), strict=True):
            assert other.logprob == pytest.approx(mine.logprob, abs=1e-3)  # its logits are of order 30
    assert runner.stats.pieced_steps > 3


@pytest.mark.parametrize(("attention", "stores"), [("torch_native", 1), ("stores_decodes", 1), ("stores_prompts", 0)])
def test_stores_that_are_recorded_go_where_each_step_has_its_slots(
    attention: str, stores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a backend leaves to a fused operation may depend on its plan; a recording stays as it was made."""
    config = {**MODELS["dense"][0], "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    launched, _ = build(tmp_path, config, (), attention_backend=attention)
    monkeypatch.setattr(Hardware, "fused", True)
    Hardware.stored.clear()
    engine, runner = build(tmp_path, config, (8, 24), attention_backend=attention)
    assert Hardware.stored.count(24) == stores * 2 * 3, "three layers, launched and recorded"
    for seed in range(3):
        for want, got in zip(answers(launched, seed), answers(engine, seed), strict=True):
            check_equal(want, got)
    assert runner.stats.pieced_steps > 5


def test_a_deterministic_engine_stays_so(tmp_path: Path) -> None:
    """The same bits alone, padded to one size, and in company, padded to another."""
    config = MODELS["dense"][0]
    engine, runner = build(
        tmp_path, config, (8, 24, 64), attention_backend="batch_invariant", deterministic=True, prefix_cache="none",
        chunked_prefill_size=64, moe_backend="torch_native",
    )  # fmt: skip
    rng = random.Random(3)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in (5, 30, 11, 2)]
    params = SamplingParams(temperature=0.8, max_tokens=6, ignore_eos=True, logprobs=2)

    def bits(chosen: list[list[int]]) -> list[tuple[list[int], list[float]]]:
        asked = [EngineRequest(np.array(prompt, np.int32), params, seed=len(prompt)) for prompt in chosen]
        chunks = engine.generate(asked)
        return [(chunk.tokens, [top.logprob for top in chunk.logprobs or ()]) for chunk in chunks]

    together = bits(prompts)
    assert [bits([prompt])[0] for prompt in prompts] == together
    assert runner.stats.pieced_steps > 5
