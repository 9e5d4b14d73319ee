"""The 8-bit KV cache of checkpoints: as compressed-tensors makes them, against that library's own quantized cache."""

from __future__ import annotations

import copy
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fp8_cases import method
from safetensors.torch import load_file, save_file
from test_fp8_checkpoints import BASE, llama, write
from transformers.models.llama.modeling_llama import LlamaAttention

from core.config.sections import CacheSettings, EngineSettings, ModelSettings, SchedulerSettings, Settings
from core.engine.build import build_engine
from core.engine.client import EngineRequest
from core.engine.offline import OfflineEngine
from core.interfaces.params import SamplingParams
from core.registry.catalog import Catalog
from core.registry.resolve import resolve
from core.runner.kv_scales import KvScaleReader
from core.runner.weights_rules import RuleTable, leaving_out
from plugin_llama.arch import LlamaArch

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


def quantized_layers(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, torch.nn.Linear) and hasattr(m, "quantization_scheme")]


def quantized(strategy: str, *, weights: bool) -> tuple[Any, dict[str, Any]]:
    """A model whose cache compressed-tensors quantizes, calibrated on other texts, and its quantization_config."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.modeling.kvcache import register_key_hook, register_value_hook
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
    )
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
    for layer in quantized_layers(model):
        layer.weight_scale.data.copy_(layer.weight.data.abs().amax(1, keepdim=True) / 448)
        layer.quantization_status = QuantizationStatus.FROZEN
    axes = (0, 2, 3) if strategy == "attn_head" else None

    def observe(which: str) -> Any:
        def hook(module: Any, states: torch.Tensor) -> None:
            most = states.abs().amax(axes) if axes else states.abs().amax().view(1)
            scale, _ = calculate_qparams(-most, most, args)
            held = getattr(module, f"{which}_scale").data
            held.copy_(torch.maximum(held, scale.view(held.shape)))

        return hook

    handles: list[Any] = []
    for module in attention:
        module.k_scale.data.zero_()
        module.v_scale.data.zero_()
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


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Only the cache is quantized, one scale a layer for keys and for values: (their model, folder)."""
    model, config = quantized("tensor", weights=False)
    return model, write(tmp_path_factory.mktemp("plain") / "checkpoint", model, model.state_dict(), config)


Texts = list[tuple[list[int], list[float]]]


def run(folder: Path, ranks: int = 1, **cache: Any) -> Texts:
    """The whole engine: greedy tokens of each prompt, and their log-probabilities."""
    settings = Settings(
        model=ModelSettings(model=str(folder), dtype="float32"),
        cache=CacheSettings(max_total_tokens=512, page_size=8, **cache),
        scheduler=SchedulerSettings(max_running_requests=4, chunked_prefill_size=16),
        engine=EngineSettings(
            device="cpu", attention_backend="torch_native", cpu_threads=1, random_seed=0, tensor_parallel_size=ranks
        ),
    )
    engine = build_engine(settings, resolve(settings, Catalog.scan()))
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=1)
    try:
        chunks = OfflineEngine(engine).generate([EngineRequest(prompt, params, seed=0) for prompt in PROMPTS])
    finally:
        engine.close()
    return [([int(t) for t in c.tokens], [x.logprob for x in c.logprobs or ()]) for c in chunks]


def off(model: Any, texts: Texts) -> float:
    """Largest difference from transformers' log-probabilities of the same tokens, which it computes in one go."""
    most = 0.0
    for prompt, (tokens, odds) in zip(PROMPTS, texts, strict=True):
        assert len(tokens) == len(odds) == 6
        with torch.inference_mode():
            wanted = model(torch.tensor([[*prompt.tolist(), *tokens]])).logits[0].double().log_softmax(-1)
        rows = torch.arange(len(prompt) - 1, len(prompt) + 5)
        most = max(most, float((wanted[rows, torch.tensor(tokens)] - torch.tensor(odds).double()).abs().max()))
    return most


def says(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Lines of the log about the cache's scales."""
    return [text for record in caplog.records if "cached keys and values" in (text := record.getMessage())]


def renamed(folder: Path, target: Path, config: dict[str, Any], **suffixes: str) -> Path:
    """The same checkpoint with scales of another name: suffix -> suffix, "" leaves them out."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, _, suffix = name.rpartition(".")
        new = suffixes.get(suffix, suffix)
        if new:
            tensors[f"{stem}.{new}"] = tensor
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    whole = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
    (target / "config.json").write_text(json.dumps(whole))
    return target


def stated(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text())["quantization_config"])


def test_a_quantized_cache_gives_what_theirs_does(
    plain: tuple[Any, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In float32 the rounding to 8 bits is the same, number by number; without the scales it would be another model."""
    model, folder = plain
    caplog.set_level(logging.INFO, "core")
    assert off(model, run(folder)) < 1e-3
    assert says(caplog) == ["cached keys and values in float8_e4m3fn are scaled as the checkpoint says, in 3 layers"]
    caplog.clear()
    bare = renamed(folder, tmp_path / "bare", stated(folder), k_scale="", v_scale="")
    assert off(model, run(bare)) > 1.0
    assert "have no scales" in says(caplog)[0]


def test_a_cache_of_another_type(plain: tuple[Any, Path], caplog: pytest.LogCaptureFixture) -> None:
    """Asked for, it wins; scales are for eight bits of either kind."""
    model, folder = plain
    caplog.set_level(logging.INFO, "core")
    exact = extreme()
    assert (
        off(exact, run(folder, kv_cache_dtype="bfloat16")) < 0.25 < off(model, run(folder, kv_cache_dtype="bfloat16"))
    )
    text = "the checkpoint's scales of cached keys and values are not used: the cache is kept in bfloat16"
    assert says(caplog) == [text, text]
    assert 1e-3 < off(exact, run(folder, kv_cache_dtype="fp8_e5m2")) < 1.5


def test_a_scale_for_each_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The largest of heads serves all: rounded elsewhere, as near to the exact model as theirs. With two ranks, that
    keep a head each, the same."""
    model, config = quantized("attn_head", weights=False)
    scale = model.model.layers[0].self_attn.k_scale
    assert scale.shape == (2, 1, 1)
    assert scale.unique().numel() == 2
    folder = write(tmp_path / "checkpoint", model, model.state_dict(), config)
    caplog.set_level(logging.INFO, "core")
    texts = run(folder)
    assert "of scales for each head the largest is taken" in says(caplog)[0]
    assert off(model, texts) < 0.8
    assert off(extreme(), texts) < 0.8
    for (tokens, odds), (more, others) in zip(texts, run(folder, ranks=2), strict=True):
        assert tokens == more
        assert others == pytest.approx(odds, abs=0.02)


def test_weights_in_8_bits_too(tmp_path: Path) -> None:
    from compressed_tensors.compressors import compress_module

    model, config = quantized("tensor", weights=True)
    written = copy.deepcopy(model)
    assert len(quantized_layers(written)) == 21
    for layer in quantized_layers(written):
        compress_module(layer)
    folder = write(tmp_path / "checkpoint", model, written.state_dict(), config)
    assert load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].dtype == torch.float8_e4m3fn
    assert off(model, run(folder)) < 0.1


AUTOFP8 = {"quant_method": "fp8", "activation_scheme": "static", "kv_cache_scheme": "static"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
OTHER = {"quant_method": "fp8", "kv_cache_scheme": "static"}


@pytest.mark.parametrize(
    ("config", "k", "v"),
    [
        (AUTOFP8, "k_proj.output_scale", "v_proj.output_scale"),
        (MODELOPT, "k_proj.k_scale", "v_proj.v_scale"),
        (OTHER, "attn.k_scale", "attn.v_scale"),
    ],
)
def test_other_names_of_the_same_scales(
    plain: tuple[Any, Path], tmp_path: Path, config: dict[str, Any], k: str, v: str
) -> None:
    model, folder = plain
    # Weights are as they are in all of them, which no list says.
    assert off(model, run(renamed(folder, tmp_path / "other", config, k_scale=k, v_scale=v))) < 1e-3


def test_one_scale_for_both_and_the_same_from_a_file(plain: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = plain
    both = renamed(folder, tmp_path / "both", OTHER, k_scale="kv_scale", v_scale="")
    moderate = {f"model.layers.{layer}.self_attn.kv_scale": torch.tensor([0.5 + layer / 7]) for layer in range(3)}
    factors = {str(layer): float(tensor) for layer, tensor in enumerate(moderate.values())}
    kept = {n: t for n, t in load_file(both / "model.safetensors").items() if not n.endswith("kv_scale")}
    save_file(kept | moderate, both / "model.safetensors")
    file = tmp_path / "scales.json"
    cache = {"dtype": "float8_e4m3fn", "scaling_factor": {"0": factors}}
    file.write_text(json.dumps({"model_type": "llama", "kv_cache": cache}))
    bare = renamed(both, tmp_path / "bare", OTHER, kv_scale="")
    texts = run(both)
    assert texts == run(bare, kv_scales_file=str(file))
    assert texts == run(folder, kv_scales_file=str(file))  # the operator's go before the checkpoint's
    assert texts != run(bare)


def test_what_is_left_out_and_what_is_not() -> None:
    made = method(OTHER)
    table = RuleTable(leaving_out(LlamaArch.weights(LlamaArch.spec(BASE)), made.ignored()))
    assert "queries" in str(table.ignored("model.layers.1.self_attn.q_scale"))
    assert table.ignored("model.layers.1.self_attn.k_scale") is None
    reader = KvScaleReader(made.kv_scales(), LlamaArch.spec(BASE), wanted=True)
    assert reader.place("model.layers.1.self_attn.k_scale") == (1, "k")
    assert reader.place("model.layers.1.self_attn.qkv_proj.v_scale") == (1, "v")
    for name in ("weight_scale", "k_proj.weight_scale", "k_proj.weight", "q_proj.output_scale", "experts.3.k_scale"):
        assert reader.place(f"model.layers.1.self_attn.{name}") is None, name
    assert reader.place("model.layers.2.self_attn.k_scale") is None, "there is no such layer"
