"""Memory: a KV cache filled to its limit beside the largest steps, and weights that go straight to the device."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.engine.client import EngineRequest
from core.interfaces.params import SamplingParams
from tests.gpu.engines import ON_CPU, engine, gpu_only, say, synchronize

GIB = 1 << 30
# Little to compute, much to remember: 64 KiB a token. The vocabulary is a real one's, so that logits take their share.
HUNGRY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 1024,
    "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128,
    "vocab_size": 128256, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "hidden_act": "silu", "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
    "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SMALL = {"num_hidden_layers": 2, "vocab_size": 1024, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 4}
LAYERS = {
    "self_attn.q_proj": ("heads", "hidden"), "self_attn.k_proj": ("kv", "hidden"), "self_attn.v_proj": ("kv", "hidden"),
    "self_attn.o_proj": ("hidden", "heads"), "mlp.gate_proj": ("inner", "hidden"), "mlp.up_proj": ("inner", "hidden"),
    "mlp.down_proj": ("hidden", "inner"), "input_layernorm": ("hidden",), "post_attention_layernorm": ("hidden",),
}  # fmt: skip


def wishes(index: int) -> SamplingParams:
    """Of requests of every kind: what takes room beside the KV cache is among them."""
    given: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True, "temperature": 0.7 if index % 3 else 0.0}
    if index % 5 == 0:
        given |= {"presence_penalty": 0.2, "repetition_penalty": 1.1}
    if index % 7 == 0:
        given |= {"logprobs": 5}
    if index % 11 == 0:
        given |= {"top_k": 50, "top_p": 0.9}
    return SamplingParams(**given)


def test_a_full_cache_fits(tmp_path: Path) -> None:
    """As much KV cache as the default share of the device's memory leaves, filled by long prompts, and then some: all
    are answered, others' pages are taken, and nothing runs out."""
    (tmp_path / "config.json").write_text(json.dumps(HUNGRY | (SMALL if ON_CPU else {})))
    context = 512 if ON_CPU else 16384
    limits = {"max_total_tokens": 2048, "max_running_requests": 8} if ON_CPU else {"max_running_requests": 256}
    with engine(tmp_path, load_format="dummy", dtype="bfloat16", context_length=context, **limits) as made:
        capacity = made.runner._attention[0].config.num_pages * made.runner.config.page_size
        rng, long = np.random.default_rng(0), context // 2
        count = int(1.1 * capacity / long) + 1
        lengths = [long - 8 - 3 * (index % 50) for index in range(count)]
        vocab = made.engine.engine.hello.vocab_size
        asked = [
            EngineRequest(rng.integers(10, vocab - 10, length, dtype=np.int32), wishes(index), seed=index)
            for index, length in enumerate(lengths)
        ]
        least, begin = [1 << 60], time.perf_counter()

        def watch(index: int, chunk: object) -> bool:
            if not ON_CPU:
                least[0] = min(least[0], torch.cuda.mem_get_info()[0])
            return False

        chunks = made.engine.generate(asked, watch)
        assert [chunk.error for chunk in chunks if chunk.error] == []
        assert all(len(chunk.tokens) == 8 for chunk in chunks)
        assert made.runner.stats.failed_steps == 0
        assert sum(lengths) > capacity, "the cache was filled"
        took = time.perf_counter() - begin
        say(f"{capacity} tokens of KV cache, {sum(lengths)} of prompts in {count} requests, {took:.1f} s")
        if ON_CPU:
            gpu_only()
        total = torch.cuda.mem_get_info()[1]
        bytes_per_token = made.runner.kv_bytes_per_page() / made.runner.config.page_size
        share = capacity * bytes_per_token / total
        say(f"KV cache {share:.1%} of {total / GIB:.1f} GiB; least memory free while it ran {least[0] / GIB:.2f} GiB")
        assert share > 0.7
        assert least[0] > 0.1 * GIB


class Peak:
    """The most memory that the process held beside files, sampled."""

    def __init__(self) -> None:
        self.first = self.most = held()
        self._on = True
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while self._on:
            self.most = max(self.most, held())
            time.sleep(0.002)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._on = False
            self._thread.join()

    @property
    def grown(self) -> int:
        return self.most - self.first


def held() -> int:
    """Bytes of this process that are no mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) << 10


def write(folder: Path, sizes: dict[str, int], layers: int) -> int:
    """A checkpoint of zeros in one file; returns its bytes."""
    from safetensors.torch import save_file

    def zeros(*names: str) -> torch.Tensor:
        return torch.zeros(*(sizes[name] for name in names), dtype=torch.bfloat16)

    tensors = {
        f"model.layers.{layer}.{name}.weight": zeros(*shape)
        for layer in range(layers)
        for name, shape in LAYERS.items()
    }
    tensors |= {"model.embed_tokens.weight": zeros("vocab", "hidden"), "model.norm.weight": zeros("hidden")}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = {
        "hidden_size": sizes["hidden"], "intermediate_size": sizes["inner"], "num_hidden_layers": layers,
        "num_attention_heads": sizes["heads"] // 64, "num_key_value_heads": sizes["kv"] // 64, "head_dim": 64,
        "vocab_size": sizes["vocab"], "max_position_embeddings": 512,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**HUNGRY, **config}))
    return sum(tensor.nbytes for tensor in tensors.values())


def test_weights_go_straight_to_the_device(tmp_path: Path) -> None:
    """The host never holds more of them than the pieces that are on their way."""
    if not Path("/proc/self/status").exists():
        gpu_only()
    few = {"max_total_tokens": 1024, "max_running_requests": 2, "context_length": 128}
    scale = 1 if ON_CPU else 8
    sizes = {"hidden": 512 * scale, "inner": 1536 * scale, "heads": 512 * scale, "kv": 128 * scale, "vocab": 1024}
    num_bytes = write(tmp_path / "model", sizes, layers=4 if ON_CPU else 6)
    with engine(**few) as small:  # what a process takes once: the device's context, libraries, pinned buffers
        small.generate([[5, 6, 7]])
    synchronize()
    peak = Peak()
    with peak.watching(), engine(tmp_path / "model", **few) as made:
        assert made.generate([[5, 6, 7]])[0].tokens
        on_device = torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0
    say(f"{num_bytes / GIB:.2f} GiB of weights; the host's memory grew by {peak.grown / GIB:.2f} GiB at most")
    if ON_CPU:
        gpu_only()
    assert on_device > 0.9 * num_bytes
    assert peak.grown < 0.4 * num_bytes
