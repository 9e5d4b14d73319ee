"""Whole checkpoints as the libraries that make them write them: compressed-tensors, and transformers' blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fp8_cases import Rank, dense, method
from parity import ParityCase, build_context, randomise
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import FineGrainedFP8Config, LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

from core.interfaces.model import ModelArch
from core.layers.linear import LinearBase
from core.runner.weights import load_weights
from core.runner.weights_rules import RuleTable
from plugin_llama.arch import LlamaArch
from plugin_qwen.arch import Qwen3MoeArch

BASE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 256, "attn_implementation": "eager",
    "tie_word_embeddings": False,
}  # fmt: skip
MOE = {
    "experts_implementation": "eager", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128,
    "norm_topk_prob": True,
}  # fmt: skip


class Fp8Arch:
    """An architecture whose layers are built with this method, as the runner builds them."""

    def __init__(self, arch: type[ModelArch], config: Any, **options: Any) -> None:
        self.arch, self.config, self.options = arch, config, options
        self.spec, self.weights = arch.spec, arch.weights

    def build(self, spec: Any, ctx: Any) -> Any:
        sources = RuleTable(self.arch.weights(spec)).sources
        return self.arch.build(spec, ctx.replace(quant=method(self.config, **self.options), sources=sources))


def llama(**changes: Any) -> Any:
    model = LlamaForCausalLM(LlamaConfig(**BASE | changes))
    randomise(model, 0)
    return model.eval()


def write(folder: Path, model: Any, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    """A checkpoint in the layout of Hugging Face."""
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    whole = {**json.loads(model.config.to_json_string()), "quantization_config": config}
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def close(case: ParityCase, limit: float) -> None:
    """Logits of a prompt and of chunks of one, against those of the other library."""
    seq = case.sequence()
    rows = [case.step([(seq, case.tokens(count))])[0] for count in (19, 1, 6, 1)]
    got, wanted = torch.cat(rows), case.reference(seq.tokens)
    error = float((got - wanted).norm() / wanted.norm())
    assert error < limit, error


@pytest.mark.parametrize(
    ("strategy", "inputs"), [("channel", "token"), ("tensor", "token"), ("tensor", "tensor"), ("block", "group")]
)
def test_compressed_tensors(tmp_path: Path, strategy: str, inputs: str) -> None:
    """The library's own layers compute what ours do, quantized inputs and all."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import compress_module
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )

    model = llama()
    shape = {"block_structure": [128, 128]} if strategy == "block" else {}
    group = {"group_size": 128} if inputs == "group" else {}
    static = inputs == "tensor"
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(num_bits=8, type="float", strategy=strategy, symmetric=True, dynamic=False, **shape),
        input_activations=QuantizationArgs(
            num_bits=8, type="float", strategy=inputs, symmetric=True, dynamic=not static, **group
        ),
    )  # fmt: skip
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format="float-quantized")
    apply_quantization_config(model, config)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and hasattr(m, "quantization_scheme")]
    assert len(layers) == 14
    for layer in layers:
        weight = layer.weight.data.abs()
        if strategy == "block":
            tall, wide = weight.shape[0] // 128, weight.shape[1] // 128
            largest = weight.view(tall, 128, wide, 128).amax((1, 3))
        else:
            largest = weight.amax(1, keepdim=True) if strategy == "channel" else weight.amax().view(1)
        layer.weight_scale.data.copy_((largest / 448).view(layer.weight_scale.shape))
        if static:
            layer.input_scale.data.fill_(3.0 / 448)
        layer.quantization_status = QuantizationStatus.FROZEN
    stated = json.loads(config.model_dump_json(exclude_none=True)) | {"quant_method": "compressed-tensors"}
    written = llama()
    apply_quantization_config(written, config)
    pairs = zip((m for m in written.modules() if hasattr(m, "quantization_scheme")), layers, strict=True)
    for layer, original in pairs:
        layer.load_state_dict(original.state_dict())
        compress_module(layer)
    folder = write(tmp_path / "checkpoint", model, written.state_dict(), stated)
    assert load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].dtype == torch.float8_e4m3fn
    # What is left is where a value falls right between two numbers of e4m3, and divisions round otherwise.
    if (strategy, inputs) == ("channel", "token"):  # what is made while loading
        llama().save_pretrained(tmp_path / "plain")
        close(ParityCase(model, tmp_path / "plain", Fp8Arch(LlamaArch, None), save=False), 0.02)  # type: ignore[arg-type]
    close(ParityCase(model, folder, Fp8Arch(LlamaArch, stated), save=False), 0.02)  # type: ignore[arg-type]


class Quantizer:
    """What transformers' operations want of their quantizer."""

    def __init__(self, config: FineGrainedFP8Config) -> None:
        self.quantization_config = config


@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
@pytest.mark.parametrize("experts", [False, True])
def test_blocks_by_transformers(tmp_path: Path, experts: bool, scale_fmt: str) -> None:
    """Weights are those that transformers dequantizes to, to the last bit; logits as near as 8-bit inputs allow."""
    config = FineGrainedFP8Config(weight_block_size=(128, 128), scale_fmt=scale_fmt)
    model: Any = llama()
    arch: Any = LlamaArch
    if experts:
        model, arch = Qwen3MoeForCausalLM(Qwen3MoeConfig(**BASE | MOE)).eval(), Qwen3MoeArch
        randomise(model, 0)
    model.save_pretrained(tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    quantize, dequantize = Fp8Quantize(Quantizer(config)), Fp8Dequantize(Quantizer(config))
    tensors: dict[str, torch.Tensor] = {}
    wide: dict[str, torch.Tensor] = {}
    for name, tensor in plain.items():
        kept = "norm" in name or "embed" in name or "lm_head" in name or name.endswith(".gate.weight")
        made = {name: tensor} if kept else quantize.convert({name: tensor})
        tensors |= made
        wide[name] = tensor
        if not kept:
            scale = made[f"{name}_scale_inv"]
            pair = {"weight": made[name], "weight_scale_inv": scale}
            wide[name] = dequantize.convert(pair)["weight"].float()  # type: ignore[union-attr]
            if scale_fmt == "float":
                wide[name] = dequantize._dequantize_one(made[name], scale, torch.float32)
    stated = {**json.loads(config.to_json_string()), "modules_to_not_convert": ["lm_head"]}
    folder = write(tmp_path / "checkpoint", model, tensors, stated)
    save_file(wide, tmp_path / "plain" / "model.safetensors")
    reference = type(model).from_pretrained(tmp_path / "plain", dtype=torch.float32, attn_implementation="eager").eval()
    case = ParityCase(reference, folder, Fp8Arch(arch, stated), save=False)  # type: ignore[arg-type]
    rules = RuleTable(arch.weights(case.spec))
    compared = 0
    for path, module in case.model.named_modules():
        if isinstance(module, LinearBase) and "layers" in path:
            held = torch.cat([wide[f"{source}.weight"] for source in rules.sources(path)])
            assert torch.equal(dense(module, torch.float32), held.float()), path
            compared += 1
    assert compared >= 4
    close(case, 0.25 if experts else 0.12)  # rounding decides which experts a token goes to


def test_ranks_of_a_whole_checkpoint(tmp_path: Path) -> None:
    """Each of 4 ranks holds its own rows and columns, 96 of 384 in the MLP: borders inside of blocks."""
    config = FineGrainedFP8Config(weight_block_size=(128, 128))
    model = llama()
    model.save_pretrained(tmp_path / "plain")
    quantize = Fp8Quantize(Quantizer(config))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(tmp_path / "plain" / "model.safetensors").items():
        kept = "norm" in name or "embed" in name or "lm_head" in name
        tensors |= {name: tensor} if kept else quantize.convert({name: tensor})
    stated = json.loads(config.to_json_string())
    folder = write(tmp_path / "checkpoint", model, tensors, stated)
    arch = Fp8Arch(LlamaArch, stated)
    spec = LlamaArch.spec(json.loads((folder / "config.json").read_text()))
    shares = []
    for rank in range(4):
        made = arch.build(spec, build_context(tp=Rank(rank, 4)))
        load_weights(made, LlamaArch.weights(spec), folder, threads=2)
        shares.append({p: dense(m, torch.float32) for p, m in made.named_modules() if isinstance(m, LinearBase)})
    whole = arch.build(spec, build_context())
    load_weights(whole, LlamaArch.weights(spec), folder, threads=2)
    for path, module in whole.named_modules():
        if path.endswith("down_proj"):
            assert torch.equal(torch.cat([share[path] for share in shares], 1), dense(module, torch.float32))
        elif path.endswith("gate_up_proj"):
            gates, ups = zip(*(share[path].chunk(2) for share in shares), strict=True)
            assert torch.equal(torch.cat([*gates, *ups]), dense(module, torch.float32))


@pytest.mark.parametrize(
    ("strategy", "inputs"), [("channel", "token"), ("tensor", "token"), ("tensor", "tensor"), ("block", "group")]
)
def test_experts_by_compressed_tensors(tmp_path: Path, strategy: str, inputs: str) -> None:
    """Each expert's projections compressed by the library: weights are those that it decompresses to, on one rank and
    on two (96 of 192 columns: inside of blocks); logits as near as 8-bit inputs allow."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import compress_module, decompress_module
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        initialize_module_for_quantization,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    static, block = inputs == "tensor", strategy == "block"
    shape = {"block_structure": [128, 128]} if block else {}
    args = QuantizationArgs(num_bits=8, type="float", strategy=strategy, symmetric=True, dynamic=False, **shape)
    group = {"group_size": 128} if block else {}
    measured = QuantizationArgs(
        num_bits=8, type="float", strategy=inputs, symmetric=True, dynamic=not static, **group
    )  # fmt: skip
    scheme = QuantizationScheme(
        targets=["Linear"], weights=args, input_activations=measured, format="float-quantized"
    )  # fmt: skip
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=["lm_head", "re:.*mlp.gate$"], format="float-quantized"
    )
    stated = json.loads(config.model_dump_json(exclude_none=True)) | {"quant_method": "compressed-tensors"}
    model: Any = Qwen3MoeForCausalLM(Qwen3MoeConfig(**BASE | MOE | {"moe_intermediate_size": 192})).eval()
    randomise(model, 0)
    model.save_pretrained(tmp_path / "plain")
    tensors: dict[str, torch.Tensor] = {}
    wide: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(tmp_path / "plain" / "model.safetensors").items():
        if "norm" in name or "embed" in name or "lm_head" in name or name.endswith(".gate.weight"):
            tensors[name] = wide[name] = tensor
            continue
        layer = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, dtype=tensor.dtype)
        layer.weight.data.copy_(tensor)
        initialize_module_for_quantization(layer, scheme, force_zero_point=False)
        most = tensor.abs()
        if block:
            padded = torch.nn.functional.pad(most, (0, -most.shape[1] % 128, 0, -most.shape[0] % 128))
            most = padded.unflatten(1, (-1, 128)).unflatten(0, (-1, 128)).amax((1, 3))
        else:
            most = most.amax(1, keepdim=True) if strategy == "channel" else most.amax().view(1)
        scale, _ = calculate_qparams(-most, most, args)
        layer.weight_scale.data.copy_(scale.view(layer.weight_scale.shape))
        if static:
            layer.input_scale.data.fill_(4.0 / 448)
        layer.quantization_status = QuantizationStatus.FROZEN
        compress_module(layer)
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{suffix}": value.detach().clone() for suffix, value in layer.state_dict().items()}
        decompress_module(layer)
        wide[name] = layer.weight.detach().float().clone()
    expert = "model.layers.0.mlp.experts.1.down_proj."
    assert tensors[f"{expert}weight"].dtype == torch.float8_e4m3fn
    assert (f"{expert}input_scale" in tensors) is static
    folder = write(tmp_path / "checkpoint", model, tensors, stated)
    save_file({name: tensor.contiguous() for name, tensor in wide.items()}, tmp_path / "plain" / "model.safetensors")
    reference = Qwen3MoeForCausalLM.from_pretrained(
        tmp_path / "plain", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    case = ParityCase(reference, folder, Fp8Arch(Qwen3MoeArch, stated), save=False)  # type: ignore[arg-type]
    close(case, 0.25)  # rounding decides which experts a token goes to
    for rank in range(3):
        share = Rank(rank - 1, 2) if rank else Rank()
        made = Fp8Arch(Qwen3MoeArch, stated).build(case.spec, build_context(tp=share))
        load_weights(made, Qwen3MoeArch.weights(case.spec), folder, threads=1)
        for index, layer in enumerate(made.layers):
            prefix = f"model.layers.{index}.mlp.experts"
            check_experts(layer.mlp.experts, prefix, wide, share)


def check_experts(experts: Any, prefix: str, wide: dict[str, torch.Tensor], share: Rank) -> None:
    """Unit vectors through each expert's products: its matrices, as the plugin computes with them."""
    held, size = experts.own, 192 // share.size
    mine = slice(share.rank * size, (share.rank + 1) * size)
    before = experts.method.before(experts.shape)  # rows of zeros before a share that begins inside a block
    for number in range(4):
        gate, up, down = (wide[f"{prefix}.{number}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        wanted = {"gate": gate[mine], "up": up[mine], "down": down[:, mine]}
        for part, matrix in dense_expert(held, number).items():
            got = matrix[:, before:] if part == "down" else matrix[before:]
            torch.testing.assert_close(got, wanted[part], rtol=1e-6, atol=0, msg=f"{part} of expert {number}")


def dense_expert(held: Any, number: int) -> dict[str, torch.Tensor]:
    """What a layout stands for, straight from its definition."""
    down = {"down": (held.down[number], held.scales["down"][number])}
    halves = zip(held.gate_up[number].float().chunk(2), held.scales["gate_up"][number].chunk(2), strict=True)
    found = {}
    for part, (stored, scale) in (dict(zip(("gate", "up"), halves, strict=True)) | down).items():
        if held.format == "fp8_block128":
            rows = torch.arange(stored.shape[0]) // 128
            columns = torch.arange(stored.shape[1]) // 128
            scale = scale[rows][:, columns]
        else:
            scale = scale.reshape(-1, 1)
        found[part] = stored.float() * scale
    return found
