"""8-bit floats on the GPU: products against float64, and whole models, quantized while loading and as checkpoints, with
and without experts, and with a KV cache of 8 bits, against the same on the CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.interfaces.params import SamplingParams
from core.ops.reference import REFERENCES
from core.ops.table import build_ops
from tests.gpu.engines import ON_CPU, Built, demo_prompts, engine, gpu_only, say

SIZES = {"max_running_requests": 16, "max_total_tokens": 4096, "context_length": 256, "dtype": "bfloat16"}
MOE: dict[str, Any] = {
    "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "head_dim": 64, "hidden_size": 256,
    "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "max_position_embeddings": 512,
}  # fmt: skip
DENSE = {name: MOE[name] for name in MOE if "expert" not in name and "sparse" not in name and "only" not in name}
DENSE.pop("norm_topk_prob"), DENSE.pop("moe_intermediate_size")
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
# From the CPU with the same weights: another order of sums moves inputs of the next layer to the neighbouring 8-bit
# number, an eighth or a sixteenth away, so two right ways are up to 0.12 apart (seen between two backends of the CPU).
# From the model that is not quantized: what three bits of mantissa leave over some layers, 0.1 to 0.23 on the CPU. A
# wrong scale anywhere makes both larger than 0.5.
LIMITS = (0.25, 0.35)
LAST = SamplingParams(temperature=0.0, max_tokens=1, hidden_states="last")


# racecheck breaks the libraries' kernels, also those that it is told to leave out.
LIBRARY_IS_LEFT_OUT = os.environ.get("SANITIZER") == "racecheck"


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize(
    ("rows", "columns", "group", "static"),
    [
        (4096, 4096, 0, False), (6144, 4096, 0, True), (1000, 1040, 0, False), (4096, 14336, 0, False),
        (4096, 4096, 128, False), (1000, 1056, 32, False), (72, 4112, 64, False),
    ],
)  # fmt: skip
def test_products(rows: int, columns: int, group: int, static: bool, device: torch.device) -> None:
    """Against float64 with the inputs as they are quantized, which leaves rounding to bfloat16 and how the matrix units
    add; and as they came."""
    from plugin_fp8 import kernels, scales
    from plugin_fp8.products import Dense, Reference, Weight, product_of

    if ON_CPU:
        rows, columns = rows // 4 // 16 * 16, columns // 4 // 16 * 16
    torch.manual_seed(rows + columns + group)
    wide = torch.randn(rows, columns, device=device) * columns**-0.5
    if group:
        scale = torch.rand(rows, -(-columns // group), device=device) * 1e-3 + 1e-4
        stored = scales.to_e4m3(wide / scales.spread(scale, group, columns))
    else:
        stored, scale = scales.quantize_rows(wide)
    inputs = torch.tensor(4.5 / 448, device=device) if static else None
    held = Weight(stored, scale, group or columns, inputs, torch.randn(rows, device=device).bfloat16())
    product, own = product_of(held, REFERENCES, kernels.Scratch()), Reference(held)
    dense, bias, worst = held.dense(torch.float64), held.bias, [0.0, 0.0]
    assert bias is not None
    for tokens in (1, 3, 17, 32) if LIBRARY_IS_LEFT_OUT else (1, 3, 17, 32, 64, 65, 200):
        x = torch.randn(tokens, columns, device=device).bfloat16()
        got = product(x)
        assert torch.equal(got, product(x)), "twice the same"
        for place, given in enumerate((own.inputs(x), x)):
            worst[place] = max(worst[place], relative(got, given.double() @ dense.t() + bias.double()))
    say(f"fp8 [{rows}, {columns}] group {group} {type(product).__name__}: off by {worst[0]:.4f}, {worst[1]:.4f}")
    assert worst[isinstance(product, Dense)] < 0.008, "this one takes inputs as they come"
    assert worst[1] < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_get_the_same_bits_everywhere(dtype: torch.dtype, device: torch.device) -> None:
    """Core's reference on the CPU and on the device, and Triton's kernels: scales and 8-bit numbers. Numbers in the
    middle between two, common in 16 bits, show a scale that is off in the last place."""
    tables = [REFERENCES]
    if not ON_CPU:
        from core.interfaces.context import PluginContext
        from plugin_triton.ops.table import TritonOps

        tables.append(build_ops(TritonOps(PluginContext(device=device)).ops()))
    x = torch.randn(300, 1184, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[7] = 0
    for name, arguments in (
        ("quantize_fp8_group", (128,)), ("quantize_fp8_group", (48,)), ("quantize_fp8_token", ()),
        ("quantize_fp8_tensor", ()),
    ):  # fmt: skip
        want, want_scale = REFERENCES[name](x, *arguments)
        for place, table in enumerate(tables):
            got, scale = table[name](x.to(device), *arguments)
            assert torch.equal(scale.cpu(), want_scale), (name, place)
            off = int((got.cpu().view(torch.uint8) != want.view(torch.uint8)).sum())
            assert off == 0, f"{name} {arguments}, table {place}: {off} of {x.numel()} numbers differ"


@pytest.mark.parametrize("group", [0, 128])
@pytest.mark.parametrize("width", [4096, 2048, 320])
def test_a_norm_that_quantizes(width: int, group: int, device: torch.device) -> None:
    if ON_CPU:
        gpu_only()
    from plugin_fp8 import kernels, scales

    torch.manual_seed(width)
    x, residual = (torch.randn(64, width, device=device).bfloat16() for _ in range(2))
    weight = torch.rand(width, device=device).bfloat16() + 0.5
    found = kernels.norm_quantize(x, residual, weight, 1e-5, group, True)
    assert torch.equal(found.total, x + residual)
    normed = torch.rms_norm((x + residual).double(), (width,), weight.double(), 1e-5)
    assert found.normed is not None
    assert relative(found.normed, normed) < 0.003
    means = found.stored.double() * scales.spread(found.scale, group or width, width).double()
    assert relative(means, normed) < 0.03, "e4m3 has three bits of mantissa"
    largest = scales.quantize_groups(normed.float(), group or width)[1]
    torch.testing.assert_close(found.scale, largest, rtol=0.005, atol=0)


def last_hidden(made: Built) -> np.ndarray:
    """[prompts, hidden size] of the last token of each."""
    chunks = made.generate(demo_prompts(), LAST)
    rows = [np.frombuffer(one.hidden, np.float32) for chunk in chunks for one in chunk.extras or () if one.hidden]
    assert len(rows) == len(chunks)
    return np.stack([row[-made.runner.config.spec.hidden_size :] for row in rows])


def median_error(got: np.ndarray, want: np.ndarray) -> float:
    """Over the prompts: a router's near tie may give one of them other experts."""
    assert np.isfinite(got).all()
    return float(np.median(np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)))


def compare(what: str, model: Path | None, plain: Path | None, **settings: Any) -> None:
    """Both devices with these settings, and without them the CPU with `plain`: last hidden states."""
    found = {}
    for device in ("cpu", None):
        chosen = {} if device is None else {"device": device}
        with engine(model, **chosen, **SIZES, **settings) as made:
            found[device] = last_hidden(made)
    with engine(plain, device="cpu", **SIZES) as made:
        wide = last_hidden(made)
    here, there = median_error(found[None], found["cpu"]), median_error(found[None], wide)
    say(f"{what}: off by {here:.4f} from the CPU, {there:.4f} from what is not quantized")
    assert here < LIMITS[0]
    assert 0 < there < LIMITS[1]


def tiny(folder: Path, kind: str) -> Path:
    """A random model of either kind, whose vocabulary takes the prompts."""
    pytest.importorskip("transformers")
    from core.testing.checkpoint import write_tiny_checkpoint

    config = MOE if kind == "qwen3_moe" else DENSE
    return write_tiny_checkpoint(folder, kind, vocab_size=4096, **config)


def in_blocks(source: Path, folder: Path) -> Path:
    """The checkpoint with matrices of its layers as e4m3 in blocks of 128 x 128, as DeepSeek-V3's are."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    changed = 0
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith(("_proj.weight", "gate_up_proj", "down_proj")):
            tensors[name] = tensor
            continue
        rows, columns = tensor.shape[-2:]
        assert rows % 128 == columns % 128 == 0, (name, tensor.shape)
        tiles = tensor.float().unflatten(-1, (-1, 128)).unflatten(-3, (-1, 128))
        scale = tiles.abs().amax((-3, -1)).clamp_min(1e-12) / 448
        values = (tiles / scale[..., :, None, :, None]).reshape(tensor.shape)
        tensors[name] = values.to(torch.float8_e4m3fn)
        tensors[name + "_scale_inv"] = scale
        changed += 1
    assert changed > 6
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": BLOCKS}))
    for extra in source.glob("token*"):
        (folder / extra.name).write_bytes(extra.read_bytes())
    return folder


def test_a_model_quantized_while_it_loads() -> None:
    compare("online, bundled model", None, None, quantization="fp8")


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_random_models_quantized_while_they_load(kind: str, tmp_path: Path) -> None:
    model = tiny(tmp_path / "model", kind)
    compare(f"online, {kind}", model, model, quantization="fp8")


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_checkpoints_in_blocks(kind: str, tmp_path: Path) -> None:
    model = tiny(tmp_path / "model", kind)
    compare(f"blocks, {kind}", in_blocks(model, tmp_path / "blocks"), model)


@pytest.mark.parametrize("kv", ["fp8_e4m3", "fp8_e5m2"])
def test_a_kv_cache_of_8_bits(kv: str) -> None:
    attention = "torch_native" if ON_CPU else "triton"
    sizes = {}
    for dtype in ("auto", kv):
        with engine(kv_cache_dtype=dtype, attention_backend=attention, **SIZES) as made:
            sizes[dtype] = made.runner.kv_bytes_per_page()
            if dtype == kv:
                got = last_hidden(made)
            else:
                wide = last_hidden(made)
    with engine(device="cpu", kv_cache_dtype=kv, attention_backend="torch_native", **SIZES) as made:
        want = last_hidden(made)
    here, there = median_error(got, want), median_error(got, wide)
    say(f"KV {kv}: {sizes[kv] / sizes['auto']:.2f} of the bytes, off by {here:.4f} from the CPU, {there:.4f} from wide")
    assert sizes[kv] * 2 == sizes["auto"]
    assert here < 0.15
    assert 0 < there < 0.3
