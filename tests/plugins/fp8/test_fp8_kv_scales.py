"""The 8-bit KV cache of checkpoints: as compressed-tensors makes them, against that library's own quantized cache."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_fp8_checkpoints import llama, write
from transformers.models.llama.modeling_llama import LlamaAttention

from core.config.sections import CacheSettings, EngineSettings, ModelSettings, SchedulerSettings, Settings
from core.engine.build import build_engine
from core.engine.client import EngineRequest
from core.engine.offline import OfflineEngine
from core.interfaces.params import SamplingParams
from core.registry.catalog import Catalog
from core.registry.resolve import resolve

FLOAT = {"num_bits": 8, "type": "float", "symmetric": True}
PROMPTS = [np.random.default_rng(n).integers(0, 61, 5 + 17 * n, dtype=np.int32) for n in range(3)]


def extreme() -> Any:
    """Keys beyond the range of e4m3 and values below it: nothing comes of them without their scales."""
    model = llama(num_hidden_layers=3, architectures=["LlamaForCausalLM"])
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.k_proj.weight.data *= 3000.0 * (number + 1)
        layer.self_attn.q_proj.weight.data /= 3000.0
        layer.self_attn.v_proj.weight.data /= 3000.0 * (number + 1)
        layer.self_attn.o_proj.weight.data *= 3000.0
    return model


class BridgedAttention(LlamaAttention):
    """Its cache by the name that compressed-tensors looks for; transformers 5.24 calls it otherwise."""

    def forward(self, *args: Any, past_key_values: Any = None, cache: Any = None, **others: Any) -> Any:
        return super().forward(*args, cache=past_key_values, **others)


def quantized(strategy: str, *, weights: bool) -> tuple[Any, dict[str, Any]]:
    """A model whose cache compressed-tensors quantizes, calibrated on other texts, and its quantization_config."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.modeling.kvcache import register_key_hook, register_value_hook
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**FLOAT, strategy=strategy, dynamic=False)
    groups: dict[str, Any] = {}
    if weights:
        groups = {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**FLOAT, "strategy": "channel", "dynamic": False},
                "input_activations": {**FLOAT, "strategy": "token", "dynamic": True},
            }
        }
    config = QuantizationConfig(
        config_groups=groups, kv_cache_scheme=args, ignore=["lm_head"], format="float-quantized"
    )
    model = extreme()
    attention = [layer.self_attn for layer in model.model.layers]
    if "past_key_values" not in inspect.signature(LlamaAttention.forward).parameters:
        for module in attention:
            module.__class__ = BridgedAttention
    apply_quantization_config(model, config)
    axes = (0, 2, 3) if strategy == "attn_head" else None

    def observe(which: str) -> Any:
        def hook(module: Any, states: torch.Tensor) -> None:
            most = states.abs().amax(axes) if axes else states.abs().amax().view(1)
            scale, _ = calculate_qparams(-most, most, args)
            held = getattr(module, f"{which}_scale").data
            held.copy_(torch.maximum(held, scale.view(held.shape)))

        return hook

    handles = []
    for module in attention:
        module.k_scale.data.zero_(), module.v_scale.data.zero_()
        module.quantization_enabled = False
        handles += [register_key_hook(module, observe("k")), register_value_hook(module, observe("v"))]
    with torch.inference_mode():
        for n in range(2):
            model(torch.from_numpy(np.random.default_rng(50 + n).integers(0, 61, (1, 40))))
    for handle in handles:
        handle.remove()
    for module in attention:
        module.quantization_enabled = True
    return model, json.loads(config.model_dump_json(exclude_none=True)) | {"quant_method": "compressed-tensors"}


def run(folder: Path, **cache: Any) -> tuple[Any, list[tuple[list[int], list[float]]]]:
    """The whole engine: (resolution, tokens and their log-probabilities of each prompt)."""
    settings = Settings(
        model=ModelSettings(model=str(folder), dtype="float32"),
        cache=CacheSettings(kv_cache_bytes=1 << 20, page_size=8, **cache),
        scheduler=SchedulerSettings(max_running_requests=4, chunked_prefill_size=16),
        engine=EngineSettings(device="cpu", attention_backend="torch_native", cpu_threads=1, random_seed=0),
    )
    resolution = resolve(settings, Catalog.scan())
    engine = build_engine(settings, resolution)
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=1)
    chunks = OfflineEngine(engine).generate([EngineRequest(prompt, params, seed=0) for prompt in PROMPTS])
    engine.close()
    return resolution, [([int(t) for t in c.tokens], [x.logprob for x in c.logprobs or ()]) for c in chunks]


def theirs(model: Any, tokens: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of the same tokens by transformers, whole texts at once."""
    found = []
    for prompt, more in zip(PROMPTS, tokens, strict=True):
        ids = torch.tensor([[*prompt.tolist(), *more]])
        with torch.inference_mode():
            odds = model(ids).logits[0].double().log_softmax(-1)
        rows = range(len(prompt) - 1, len(prompt) + len(more) - 1)
        found.append([float(odds[row, token]) for row, token in zip(rows, more, strict=True)])
    return found


def off(model: Any, texts: list[tuple[list[int], list[float]]]) -> float:
    wanted = np.array(theirs(model, [tokens for tokens, _ in texts]))
    return float(np.abs(wanted - np.array([odds for _, odds in texts])).max())


def test_x(tmp_path: Path) -> None:
    model, config = quantized("tensor", weights=False)
    print(config)
    held = {name: t for name, t in model.state_dict().items()}
    print([ (n, t.shape, t) for n,t in held.items() if "scale" in n or "zero" in n])
    folder = write(tmp_path / "checkpoint", model, held, config)
    resolution, texts = run(folder)
    print(resolution.kv_cache_dtype, [(d.name, d.value, d.reason) for d in resolution.decisions])
    print(off(model, texts), texts)
    model2 = extreme()
    print("vs exact", off(model2, texts))
    _, wide = run(folder, kv_cache_dtype="auto" if False else "bfloat16")
    print("wide vs theirs", off(model, wide))
    _, e5 = run(folder, kv_cache_dtype="fp8_e5m2")
    print("e5", off(model, e5))
    save_file({n: t.contiguous() for n, t in held.items() if not n.endswith(("k_scale", "v_scale"))}, folder / "model.safetensors")
    _, no = run(folder)
    print("no scales", off(model, no))
