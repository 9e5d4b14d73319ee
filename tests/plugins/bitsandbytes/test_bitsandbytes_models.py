"""Whole models against transformers with bitsandbytes, and checkpoints in the layouts of transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import ParityCase, check_ranks
from quantized import QuantizedArch, load_quantized, method, parity_case, quant_config, quantize_experts, write_plain
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from core.interfaces.context import PluginContext
from core.interfaces.errors import WeightError
from core.interfaces.model import ModelArch
from core.layers.moe import Experts, TorchNativeMoe
from plugin_bitsandbytes.devices import can_fuse
from plugin_bitsandbytes.kernels import FUSED_ROWS, TiledKernel
from plugin_llama.arch import LlamaArch
from plugin_qwen.arch import Qwen3Arch, Qwen3MoeArch

BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "attn_implementation": "eager",
    "tie_word_embeddings": False,
}
MOE: dict[str, Any] = {
    "experts_implementation": "eager",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
MODELS: dict[str, tuple[Callable[[], Any], type[ModelArch]]] = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**{**BASE, "attention_bias": True})), LlamaArch),
    "qwen3": (lambda: Qwen3ForCausalLM(Qwen3Config(**BASE)), Qwen3Arch),
    "qwen3_moe": (lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**BASE, **MOE})), Qwen3MoeArch),
}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FORMATS: dict[str, dict[str, Any]] = {
    "nf4": NF4,
    "nf4 nested": {**NF4, "bnb_4bit_use_double_quant": True},
    "nf4 in bfloat16": {**NF4, "bnb_4bit_quant_storage": torch.bfloat16},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    "int8 with outliers": {"load_in_8bit": True, "llm_int8_threshold": 1.0},
}
FUSED = can_fuse(torch.device("cpu"), torch.bfloat16)


def check(case: ParityCase) -> None:
    case.check_prefill(19)
    case.check_chunked([5, 1, 9])
    case.check_mixed([7, 2, 1])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_that_transformers_quantized(tmp_path: Path, model: str, name: str) -> None:
    """Logits within 1e-4 in float32, and greedy texts."""
    make, arch = MODELS[model]
    hf = load_quantized(write_plain(make(), tmp_path), **FORMATS[name])
    hf.save_pretrained(tmp_path / "quantized")
    case = parity_case(hf, tmp_path / "quantized", arch, method(quant_config(tmp_path / "quantized")))
    case.check_prefill(19)
    case.check_greedy(9, 24)
    if name != "int8 with outliers":  # which columns are outliers depends on the tokens of the call
        check(case)


@pytest.mark.parametrize("model", ["qwen3", "llama"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nf4", {}),
        ("nf4 nested", {"nested": True}),
        ("fp4", {"format": "fp4"}),
        ("int8", {"format": "int8", "threshold": 0}),
    ],
)
def test_quantizing_while_loading(tmp_path: Path, model: str, name: str, options: dict[str, Any]) -> None:
    """What transformers makes of the same unquantized checkpoint."""
    make, arch = MODELS[model]
    plain = write_plain(make(), tmp_path)
    check(parity_case(load_quantized(plain, **FORMATS[name]), plain, arch, method(None, **options)))


@pytest.mark.parametrize("skip", [["lm_head", "self_attn"], ["model.layers.0"], ["q_proj", "up_proj"]])
def test_skip_lists(tmp_path: Path, skip: list[str]) -> None:
    """Also of parts of fused layers. The names of layer 0 stand at the start, as transformers 5 wants them."""
    make, arch = MODELS["qwen3"]
    if skip == ["lm_head", "self_attn"]:
        skip = ["lm_head", *(f"model.layers.{i}.self_attn" for i in range(2))]
    plain = write_plain(make(), tmp_path)
    hf = load_quantized(plain, **NF4, llm_int8_skip_modules=skip)
    hf.save_pretrained(tmp_path / "quantized")
    config = quant_config(tmp_path / "quantized")
    assert config["llm_int8_skip_modules"] == skip
    check(parity_case(hf, tmp_path / "quantized", arch, method(config)))
    check(parity_case(hf, plain, arch, method(None, skip=tuple(skip))))


def test_lists_that_mean_more_to_transformers(tmp_path: Path) -> None:
    """There an entry may be a regular expression or the end of a name. The tensors decide."""
    make, arch = MODELS["qwen3"]
    hf = load_quantized(write_plain(make(), tmp_path), **NF4, llm_int8_skip_modules=[r"model.layers.*.mlp", "v_proj"])
    hf.save_pretrained(tmp_path / "quantized")
    names = load_file(tmp_path / "quantized" / "model.safetensors").keys()
    assert "model.layers.1.mlp.up_proj.weight.absmax" not in names
    assert "model.layers.1.self_attn.q_proj.weight.absmax" in names
    check(parity_case(hf, tmp_path / "quantized", arch, method(quant_config(tmp_path / "quantized"))))


@pytest.mark.skipif(not FUSED, reason="this CPU has no AVX512-BF16, so bitsandbytes has no fused kernel")
def test_the_fused_kernel(tmp_path: Path) -> None:
    """bfloat16 products as the library's own layers compute them on such a CPU. A prefill of at most
    kernels.FUSED_ROWS tokens calls the very same kernel."""
    make, arch = MODELS["llama"]
    hf = load_quantized(write_plain(make(), tmp_path), fused=True, **NF4, bnb_4bit_compute_dtype=torch.bfloat16)
    case = parity_case(hf, tmp_path / "plain", arch, method(None, compute_dtype="bfloat16"))
    assert isinstance(case.model.layers[0].self_attn.qkv_proj.kernel, TiledKernel)
    case.check_prefill(FUSED_ROWS)
    case.check_chunked([5, 1, 9])


def dense_moe(folder: Path, target: Path, matrices: dict[str, torch.Tensor]) -> Any:
    """The checkpoint with its experts' matrices replaced, in transformers, unquantized."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    for module, weight in matrices.items():
        tensors[f"{module}.weight"] = weight.clone()
    target.mkdir()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text((folder / "config.json").read_text())
    hf = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, experts_implementation="eager")
    return hf.eval()


@pytest.mark.parametrize(("kind", "nested"), [("nf4", False), ("nf4", True), ("fp4", False)])
def test_experts_as_transformers_4_wrote_them(tmp_path: Path, kind: str, nested: bool) -> None:
    make, arch = MODELS["qwen3_moe"]
    plain = write_plain(make(), tmp_path)
    original = load_file(plain / "model.safetensors")
    save_file({name: tensor.clone() for name, tensor in original.items()}, tmp_path / "kept.safetensors")
    matrices = quantize_experts(plain, kind, nested)
    assert len(matrices) == 2 * 4 * 3
    quantized = tmp_path / "v4"
    plain.rename(quantized)
    plain.mkdir()
    (plain / "config.json").write_text((quantized / "config.json").read_text())
    (tmp_path / "kept.safetensors").rename(plain / "model.safetensors")
    hf = dense_moe(plain, tmp_path / "dense", matrices)
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    case = parity_case(hf, quantized, arch, method(config))
    experts = case.model.layers[0].mlp.experts
    assert isinstance(experts, Experts)
    assert experts.weights is None
    check(case)
    case.check_greedy(9, 24)
    # Quantized while loading, they come out the same; the other layers are left out for the comparison.
    made = parity_case(hf, plain, arch, method(None, format=kind, nested=nested, skip=("lm_head", "gate", "self_attn")))
    assert made.model.layers[1].mlp.experts.weights is None
    check(made)


def test_stacked_experts_are_quantized_while_loading(tmp_path: Path) -> None:
    make, arch = MODELS["qwen3_moe"]
    plain = write_plain(make(), tmp_path)
    single = parity_case(None, plain, arch, method(None))
    file = plain / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts"
        parts = {p: [tensors.pop(f"{prefix}.{e}.{p}_proj.weight") for e in range(4)] for p in ("gate", "up", "down")}
        tensors[f"{prefix}.gate_up_proj"] = torch.stack(
            [torch.cat(p) for p in zip(parts["gate"], parts["up"], strict=True)]
        )
        tensors[f"{prefix}.down_proj"] = torch.stack(parts["down"])
    save_file(tensors, file)
    stacked = parity_case(None, plain, arch, method(None))
    for name, wanted in single.model.named_parameters():
        assert torch.equal(stacked.model.get_parameter(name), wanted), name
    assert any("gate_up_3_packed" in name for name, _ in stacked.model.named_parameters())


def test_experts_that_transformers_5_leaves_unquantized(tmp_path: Path) -> None:
    """They go to the runner of experts as plain ones."""
    make, arch = MODELS["qwen3_moe"]
    hf = load_quantized(write_plain(make(), tmp_path), **NF4)
    hf.save_pretrained(tmp_path / "quantized")
    case = parity_case(hf, tmp_path / "quantized", arch, method(quant_config(tmp_path / "quantized")))
    experts = case.model.layers[0].mlp.experts
    assert experts.weights.gate_up.shape == (4, 128, 64)
    assert sorted(name for name, _ in experts.named_parameters()) == ["down", "gate_up"]


def test_a_runner_that_takes_no_plain_experts(tmp_path: Path) -> None:
    """Then they are computed here, like quantized ones."""
    make, arch = MODELS["qwen3_moe"]
    hf = load_quantized(write_plain(make(), tmp_path), **NF4)
    hf.save_pretrained(tmp_path / "quantized")

    class Other(TorchNativeMoe):
        formats = frozenset({"other"})

    quant = method(quant_config(tmp_path / "quantized"))
    case = parity_case(hf, tmp_path / "quantized", arch, quant, moe=Other(PluginContext()))
    assert case.model.layers[0].mlp.experts.weights is None
    check(case)


@pytest.mark.parametrize("name", ["nf4", "nf4 nested", "fp4"])
def test_two_ranks(tmp_path: Path, name: str) -> None:
    make, arch = MODELS["qwen3_moe"]
    hf = load_quantized(write_plain(make(), tmp_path), **FORMATS[name])
    hf.save_pretrained(tmp_path / "quantized")
    quant = method(quant_config(tmp_path / "quantized"))
    whole = parity_case(hf, tmp_path / "quantized", arch, quant)
    wrapped: Any = QuantizedArch(arch, quant)
    check_ranks(whole, tmp_path / "quantized", wrapped, 2)


@pytest.mark.parametrize("lost", ["weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"])
def test_a_checkpoint_that_lost_a_tensor(tmp_path: Path, lost: str) -> None:
    make, arch = MODELS["qwen3"]
    hf = load_quantized(write_plain(make(), tmp_path), **NF4)
    folder = tmp_path / "quantized"
    hf.save_pretrained(folder)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    name = f"model.layers.1.self_attn.k_proj.{lost}"
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightError, match=name.rpartition("__")[0] or name):
        parity_case(hf, folder, arch, method(quant_config(folder)))
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightError, match=r"1 tensors are missing: model.layers.0.mlp.up_proj.weight"):
        parity_case(hf, folder, arch, method(quant_config(folder)))


def test_tensors_of_another_format(tmp_path: Path) -> None:
    """An int8 checkpoint whose config.json says 4 bits."""
    make, arch = MODELS["qwen3"]
    hf = load_quantized(write_plain(make(), tmp_path), load_in_8bit=True)
    hf.save_pretrained(tmp_path / "quantized")
    with pytest.raises(WeightError, match=r"tensors are unexpected: model.layers.0.mlp.down_proj.SCB"):
        parity_case(hf, tmp_path / "quantized", arch, method({**NF4, "quant_method": "bitsandbytes"}))
