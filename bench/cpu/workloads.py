"""Shapes and workloads C0-C4. Standard library only: every driver's environment imports this file."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "tiny8m": {
        "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "intermediate_size": 768, "vocab_size": 4096,
    },
    "0.6b": {
        "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936,
    },
    # Latent attention and experts, the proportions of GLM-4.7-Flash.
    "lite100m": {
        "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "tie_word_embeddings": False,
        "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8,
        "q_lora_rank": 256, "kv_lora_rank": 128, "qk_rope_head_dim": 32, "qk_nope_head_dim": 48, "v_head_dim": 64,
        "intermediate_size": 1536, "moe_intermediate_size": 256, "n_routed_experts": 16, "num_experts_per_tok": 4,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 1.8, "norm_topk_prob": True,
        "n_group": 1, "topk_group": 1, "vocab_size": 32000, "rope_interleave": True, "rms_norm_eps": 1e-5,
        "mlp_layer_types": ["dense"] + ["sparse"] * 7,
    },
}  # fmt: skip


def write_config(shape: str, folder: Path) -> None:
    """A Hugging Face folder with nothing but config.json; weights are drawn by each engine."""
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": True,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
        "attention_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02, "torch_dtype": "bfloat16",
        "use_cache": True, "use_sliding_window": False, "max_window_layers": 28, "sliding_window": None,
        "bos_token_id": 0, "eos_token_id": 1, "rope_scaling": None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | SHAPES[shape], indent=1))


@dataclass(frozen=True)
class Workload:
    """prompts: token ids. output_len: tokens to generate for each. counts: "out" or "in" tokens are reported.
    warm_prefix: run once before timing so that the common prefix is cached, where the engine caches."""

    name: str
    prompts: list[list[int]]
    output_len: int
    counts: str

    @property
    def tokens(self) -> int:
        return len(self.prompts) * self.output_len if self.counts == "out" else sum(map(len, self.prompts))


def workloads(shape: str, draw: int) -> list[Workload]:
    """C1-C4 for a shape. `draw` seeds the ids: warm-up and each repetition use different ones, so that only C4's
    common prefix can come from a cache."""
    vocab = SHAPES[shape]["vocab_size"]
    rng = random.Random(1000 + draw)

    def ids(count: int, source: random.Random = rng) -> list[int]:
        return [source.randrange(3, vocab) for _ in range(count)]

    prefix = ids(1024, random.Random(7))
    prefills = (8, 2048) if shape == "tiny8m" else (4, 512)
    return [
        Workload("C1", [ids(64)], 128, "out"),
        Workload("C2", [ids(128) for _ in range(32)], 128, "out"),
        Workload("C3", [ids(prefills[1]) for _ in range(prefills[0])], 1, "in"),
        Workload("C4", [prefix + ids(32) for _ in range(16)], 32, "out"),
    ]


def arguments() -> argparse.Namespace:
    """Command line of every driver."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True, help="folder with config.json")
    parser.add_argument("--shape", required=True, choices=sorted(SHAPES))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="C1,C2,C3,C4")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--started", type=float, default=0.0, help="time.time() just before this process was started")
    return parser.parse_args()


def measure(args: argparse.Namespace, run: Callable[[list[list[int]], int], int], versions: dict[str, str]) -> None:
    """Time `run(prompts, output_len) -> generated tokens` on each workload and print one JSON line.

    Figures are the median of `repeat` runs after one warm-up on the same shapes.
    """
    ready = time.time() - args.started if args.started else float("nan")
    result: dict[str, Any] = {"C0_s": round(ready, 2), "versions": versions}
    for index, first in enumerate(workloads(args.shape, 0)):
        if first.name not in args.only.split(","):
            continue
        run(first.prompts, first.output_len)
        rates = []
        for repetition in range(args.repeat):
            work = workloads(args.shape, repetition + 1)[index]
            begin = time.perf_counter()
            generated = run(work.prompts, work.output_len)
            seconds = time.perf_counter() - begin
            assert generated == len(work.prompts) * work.output_len, (work.name, generated)
            rates.append(work.tokens / seconds)
        result[first.name] = round(statistics.median(rates), 1)
        result[f"{first.name}_runs"] = [round(rate, 1) for rate in rates]
    print("RESULT " + json.dumps(result), flush=True)
