"""Layers and checkpoints in bitsandbytes formats, made by bitsandbytes and transformers themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt, Params4bit
from parity import ParityCase, build_context, randomise
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from core.interfaces.context import PluginContext
from core.interfaces.model import ModelArch
from core.layers.linear import LinearBase
from core.runner.weights_rules import RuleTable
from plugin_bitsandbytes.method import BitsAndBytes
from plugin_bitsandbytes.settings import Options

DOUBLE: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
EIGHT: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_8bit": True}


class Rank:
    """One rank of a group whose results the test puts together itself."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return x


def method(config: Mapping[str, Any] | None = None, **options: Any) -> BitsAndBytes:
    return BitsAndBytes(config, PluginContext(settings=Options(**options)))


def four_bit(kind: str, **changes: Any) -> dict[str, Any]:
    """A quantization_config of a 4-bit checkpoint."""
    return {**DOUBLE, "bnb_4bit_quant_type": kind, **changes}


def context(
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    rank: Rank | None = None,
    **options: Any,
) -> Any:
    return build_context(quant=method(config, **options), dtype=dtype, tp=rank or Rank())


def library_linear(
    weight: torch.Tensor,
    kind: str,
    *,
    nested: bool = False,
    block_size: int = 64,
    storage: torch.dtype = torch.uint8,
    bias: torch.Tensor | None = None,
) -> Linear4bit:
    """bitsandbytes' own layer, which multiplies with what `dequantize_4bit` gives (its fused kernel is turned off)."""
    rows, cols = weight.shape
    layer = Linear4bit(
        cols, rows, bias is not None, weight.dtype, compress_statistics=nested, quant_type=kind, quant_storage=storage
    )
    own = Params4bit(
        weight.clone(), False, blocksize=block_size, compress_statistics=nested, quant_type=kind, quant_storage=storage,
        module=layer,
    )  # fmt: skip
    layer.weight = own.to("cpu")
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
    layer.support_avx512bf16_for_cpu = False
    return layer.eval()


def exact(
    tensors: Mapping[str, torch.Tensor], rows: int, cols: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The matrix that a 4-bit layer's tensors mean, straight from the definition: code of each nibble times the scale
    of its block, in float32, rounded once."""
    (header,) = (tensor for name, tensor in tensors.items() if "quant_state" in name)
    facts = json.loads(bytes(header.numpy()))
    codes = tensors["weight"].reshape(-1).view(torch.uint8)
    nibbles = torch.stack((codes >> 4, codes & 15), 1).view(-1)[: rows * cols].long()
    scales = tensors["weight.absmax"]
    if "nested_offset" in facts:
        outer = tensors["weight.nested_absmax"].repeat_interleave(facts["nested_blocksize"])[: len(scales)]
        scales = tensors["weight.nested_quant_map"][scales.long()] * outer + facts["nested_offset"]
    scales = scales.repeat_interleave(facts["blocksize"])[: rows * cols]
    return (tensors["weight.quant_map"][nibbles] * scales).view(rows, cols).to(dtype)


def library_int8(weight: torch.Tensor, threshold: float, bias: torch.Tensor | None = None) -> Linear8bitLt:
    rows, cols = weight.shape
    layer = Linear8bitLt(cols, rows, bias is not None, has_fp16_weights=False, threshold=threshold)
    layer.weight.data = weight.clone()
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
    return layer.to("cpu").eval()


def tensors_of(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What the layer writes into a checkpoint: suffix -> tensor."""
    return {name: tensor.detach().clone() for name, tensor in layer.state_dict().items()}


def fill(layer: LinearBase, tensors: Mapping[str, torch.Tensor], part: str = "") -> None:
    for suffix, tensor in tensors.items():
        assert layer.covers(suffix, part) <= layer.expected()
        layer.load(suffix, part, tensor)


def dense(layer: LinearBase, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return layer.method.dense(layer, layer.shape, dtype, torch.device("cpu"))


class QuantizedArch:
    """An architecture whose layers are built with a quantization method, as the runner builds them."""

    def __init__(self, arch: type[ModelArch], quant: BitsAndBytes, **changes: Any) -> None:
        self.arch, self.quant, self.changes = arch, quant, changes
        self.spec, self.weights = arch.spec, arch.weights

    def build(self, spec: Any, ctx: Any) -> Any:
        sources = RuleTable(self.arch.weights(spec)).sources
        return self.arch.build(spec, ctx.replace(quant=self.quant, sources=sources, **self.changes))


def parity_case(hf: Any, folder: Path, arch: type[ModelArch], quant: BitsAndBytes, **changes: Any) -> ParityCase:
    """changes: of the build context."""
    wrapped: Any = QuantizedArch(arch, quant, **changes)
    return ParityCase(hf, folder, wrapped, save=False)


def write_plain(model: Any, folder: Path, seed: int = 0) -> Path:
    randomise(model, seed)
    model.eval().save_pretrained(folder / "plain")
    return folder / "plain"


def load_quantized(folder: Path, fused: bool = False, **settings: Any) -> Any:
    """The checkpoint at `folder`, quantized by transformers and bitsandbytes while they load it. fused: let the
    library use its bfloat16 kernel."""
    config = BitsAndBytesConfig(**settings)
    dtype = torch.float32
    hf = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype, device_map="cpu")
    for module in hf.modules():
        if isinstance(module, Linear4bit) and not fused:
            module.support_avx512bf16_for_cpu = False
    return hf.eval()


def quant_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return config


def quantize_experts(folder: Path, kind: str, nested: bool, keep: str = "") -> dict[str, torch.Tensor]:
    """Rewrite a transformers-5 checkpoint as transformers 4 wrote them: every expert's projections are Linear4bit (or
    Linear8bitLt) modules of their own. Returns the dequantized matrices by module name; `keep` names one to leave."""
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    matrices: dict[str, torch.Tensor] = {}
    for name in [name for name in tensors if ".experts." in name]:
        module = name.removesuffix(".weight")
        if keep and keep in module:
            continue
        weight = tensors.pop(name)
        if kind == "int8":
            layer: Any = library_int8(weight, 6.0)
            codes = layer.weight.CB
            matrices[module] = codes * layer.weight.SCB.view(-1, 1) * 7.874015718698502e-3
        else:
            layer = library_linear(weight, kind, nested=nested)
            import bitsandbytes.functional as functional

            matrices[module] = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        tensors |= {f"{module}.{suffix}": tensor.contiguous() for suffix, tensor in tensors_of(layer).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return matrices
