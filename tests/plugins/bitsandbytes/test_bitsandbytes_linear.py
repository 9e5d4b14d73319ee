"""Linear layers against bitsandbytes' own."""

from __future__ import annotations

from typing import Any

import bitsandbytes.functional as functional
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized import EIGHT, context, dense, exact, fill, four_bit, library_int8, library_linear, tensors_of

from core.interfaces.errors import ConfigError, WeightError
from core.layers.linear import MergedLinear, QkvLinear, ReplicatedLinear
from plugin_bitsandbytes import kernels
from plugin_bitsandbytes.config import BLOCK_SIZES
from plugin_bitsandbytes.devices import can_fuse
from plugin_bitsandbytes.kernels import BlockKernel, Int8Kernel, PlainKernel, TiledKernel

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FUSED = can_fuse(torch.device("cpu"), torch.bfloat16)
needs_fused = pytest.mark.skipif(not FUSED, reason="this CPU has no AVX512-BF16, so bitsandbytes has no fused kernel")


def matrix(rows: int, cols: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, cols, generator=generator) * 0.05).to(dtype)


def plain_layer(rows: int, cols: int, ctx: Any, bias: bool = False) -> ReplicatedLinear:
    return ReplicatedLinear("layer", cols, rows, ctx, bias=bias)


def own_dequantized(layer: Any) -> torch.Tensor:
    return functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 150))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    SHAPES, st.sampled_from(["nf4", "fp4"]), st.sampled_from(BLOCK_SIZES), st.booleans(), st.sampled_from(FLOATS),
    st.integers(1, 5), st.booleans(),
)  # fmt: skip
def test_a_checkpoint_of_the_library(
    shape: tuple[int, int], kind: str, block_size: int, nested: bool, dtype: torch.dtype, num_rows: int, with_bias: bool
) -> None:
    """The very weights of dequantize_4bit, the very outputs of Linear4bit; by definition where the library's own CPU
    kernel goes wrong, which is where a block goes on into the next row."""
    rows, cols = shape
    bias = matrix(1, rows, 1, dtype)[0] if with_bias else None
    own = library_linear(matrix(rows, cols, 2, dtype), kind, nested=nested, block_size=block_size, bias=bias)
    layer = plain_layer(rows, cols, context(four_bit(kind), dtype, fused=False), with_bias)
    fill(layer, tensors_of(own))
    layer.finish()
    weight = exact(tensors_of(own), rows, cols, dtype)
    assert torch.equal(dense(layer, dtype), weight)
    x = matrix(num_rows, cols, 3, dtype)
    with torch.inference_mode():
        assert torch.equal(layer(x), torch.nn.functional.linear(x, weight, bias))
        if cols % block_size == 0:
            assert torch.equal(weight, own_dequantized(own))
            assert torch.equal(layer(x), own(x))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    SHAPES, st.sampled_from(["nf4", "fp4"]), st.sampled_from(BLOCK_SIZES), st.booleans(), st.sampled_from(FLOATS),
    st.sampled_from(FLOATS),
)  # fmt: skip
def test_quantizing_while_loading_is_what_the_library_does(
    shape: tuple[int, int], kind: str, block_size: int, nested: bool, dtype: torch.dtype, stored: torch.dtype
) -> None:
    weight = matrix(*shape, 2, stored)
    own = library_linear(weight.to(dtype), kind, nested=nested, block_size=block_size)
    ctx = context(None, dtype, format=kind, nested=nested, blocksize=block_size, fused=False)
    layer = plain_layer(*shape, ctx)
    assert layer.expected() == {("weight", "", -1)}
    fill(layer, {"weight": weight})
    layer.finish()
    assert torch.equal(dense(layer, dtype), exact(tensors_of(own), *shape, dtype))


def test_no_fallback_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's CPU backend turns to compiled code for odd rows and for large blocks."""
    from bitsandbytes.backends.default import ops

    def fail(*args: Any) -> None:
        raise AssertionError("the fallback was called")

    monkeypatch.setattr(ops, "_dequantize_4bit_compute", fail)
    for rows, cols, block_size in ((3, 5, 64), (4, 7, 32), (3, 4096, 4096), (5, 1001, 2048)):
        layer = plain_layer(rows, cols, context(None, format="nf4", blocksize=block_size))
        fill(layer, {"weight": matrix(rows, cols)})
        layer.finish()
        torch.testing.assert_close(dense(layer), matrix(rows, cols), rtol=0, atol=0.05)


def test_large_matrices_are_quantized_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from plugin_bitsandbytes import blocks

    monkeypatch.setattr(blocks, "CHUNK", 4096)
    weight = matrix(90, 130)
    layer = plain_layer(90, 130, context(None, format="nf4"))
    fill(layer, {"weight": weight})
    layer.finish()
    assert torch.equal(dense(layer), exact(tensors_of(library_linear(weight, "nf4")), 90, 130))


@pytest.mark.parametrize("storage", [torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32])
def test_storage_dtypes(storage: torch.dtype) -> None:
    own = library_linear(matrix(24, 64), "nf4", nested=True, storage=storage)
    tensors = tensors_of(own)
    assert tensors["weight"].dtype == storage
    config = four_bit("nf4", bnb_4bit_quant_storage=str(storage).removeprefix("torch."))
    layer = plain_layer(24, 64, context(config))
    fill(layer, tensors)
    layer.finish()
    assert torch.equal(dense(layer), own_dequantized(library_linear(matrix(24, 64), "nf4", nested=True)))


def test_int8_of_a_single_column_is_refused() -> None:
    with pytest.raises(ConfigError, match="single input") as caught:
        plain_layer(8, 1, context(EIGHT))
    assert caught.value.field == "model.quantization"


@pytest.mark.parametrize("block_size", [32, 64, 256])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@needs_fused
def test_the_fused_kernel(kind: str, block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Linear4bit itself computes on such a CPU, bit for bit; and the weights up to scales in bfloat16."""
    monkeypatch.setattr(kernels, "CHUNK", 1)  # repacked tile by tile
    bias = matrix(1, 64, 1, torch.bfloat16)[0]
    weight = matrix(64, 256, 2, torch.bfloat16)
    own = library_linear(weight, kind, nested=True, block_size=block_size, bias=bias)
    wanted = own_dequantized(own).float()
    layer = plain_layer(64, 256, context(four_bit(kind), torch.bfloat16), bias=True)
    fill(layer, tensors_of(own))
    layer.finish()
    assert isinstance(layer.kernel, TiledKernel)
    torch.testing.assert_close(dense(layer), wanted, rtol=2**-7, atol=0)
    own.support_avx512bf16_for_cpu = True
    for num_rows in (1, 3, kernels.FUSED_ROWS):
        x = matrix(num_rows, 256, 3, torch.bfloat16)
        with torch.inference_mode():
            assert torch.equal(layer(x), own(x))
    many = matrix(kernels.FUSED_ROWS + 5, 256, 4, torch.bfloat16)
    with torch.inference_mode():
        wanted = own(many).float()
        torch.testing.assert_close(layer(many).float(), wanted, rtol=0.02, atol=0.01 * float(wanted.abs().max()))


@needs_fused
def test_shapes_that_the_fused_kernel_cannot_take() -> None:
    for rows, cols in ((33, 64), (32, 96), (48, 64)):
        layer = plain_layer(rows, cols, context(None, torch.bfloat16))
        fill(layer, {"weight": matrix(rows, cols)})
        layer.finish()
        assert isinstance(layer.kernel, BlockKernel)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    # torch._int_mm is wrong for one column on CPUs (2.13).
    st.tuples(st.integers(1, 70), st.integers(2, 150)), st.sampled_from([0.0, 0.05, 6.0]), st.sampled_from(FLOATS),
    st.integers(1, 5), st.booleans(),
)  # fmt: skip
def test_int8(shape: tuple[int, int], threshold: float, dtype: torch.dtype, num_rows: int, with_bias: bool) -> None:
    """Linear8bitLt, bit for bit, from its own tensors and from quantizing while loading; x is left as it was."""
    rows, cols = shape
    bias = matrix(1, rows, 1, dtype)[0] if with_bias else None
    weight = matrix(rows, cols, 2, dtype)
    own = library_int8(weight, threshold, bias)
    tensors = tensors_of(own)
    read = plain_layer(rows, cols, context({**EIGHT, "llm_int8_threshold": threshold}, dtype), with_bias)
    fill(read, tensors)
    made = plain_layer(rows, cols, context(None, dtype, format="int8", threshold=threshold), with_bias)
    fill(made, {"weight": weight} | ({"bias": bias} if bias is not None else {}))
    x = matrix(num_rows, cols, 3, dtype)
    kept = x.clone()
    with torch.inference_mode():
        wanted = own(x.clone())
        for layer in (read, made):
            layer.finish()
            assert isinstance(layer.kernel, Int8Kernel)
            assert torch.equal(layer(x), wanted)
            assert torch.equal(x, kept)
            assert layer(x[:0]).shape == (0, rows)
    scale = weight.float().abs().max(1, keepdim=True).values / 127
    torch.testing.assert_close(dense(read), weight.float(), rtol=0, atol=float(scale.max()) * 0.51 + 1e-3)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_fused_projection_is_its_parts(kind: str, nested: bool) -> None:
    """Parts of 3 x 20 rows: only some of them end where a block does."""
    parts = {"q": matrix(60, 80, 1), "k": matrix(40, 80, 2), "v": matrix(40, 80, 3)}
    layer = QkvLinear("attn.qkv_proj", 80, 3, 2, 20, context(EIGHT if kind == "int8" else four_bit(kind)), bias=False)
    owns = {}
    for name, weight in parts.items():
        owns[name] = library_int8(weight, 6.0) if kind == "int8" else library_linear(weight, kind, nested=nested)
        fill(layer, tensors_of(owns[name]), name)
    layer.finish()
    x = matrix(3, 80, 4)
    with torch.inference_mode():
        if kind == "int8":
            assert torch.equal(layer(x), torch.cat([own(x) for own in owns.values()], -1))
        else:
            weight = torch.cat([exact(tensors_of(own), *parts[name].shape) for name, own in owns.items()])
            assert torch.equal(dense(layer), weight)
            torch.testing.assert_close(layer(x), x @ weight.t(), rtol=0, atol=1e-6)


def test_parts_that_end_with_a_block_become_one_matrix() -> None:
    layer = MergedLinear("mlp.gate_up_proj", 64, {"gate": 24, "up": 24}, context(four_bit("nf4")), bias=False)
    for number, name in enumerate(("gate", "up")):
        fill(layer, tensors_of(library_linear(matrix(24, 64, number), "nf4")), name)
    layer.finish()
    assert isinstance(layer.kernel, BlockKernel)
    assert layer.kernel.rows == 48


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("left_out", [{"q"}, {"k"}, {"q", "v"}])
def test_a_fused_projection_that_is_quantized_in_part(kind: str, left_out: set[str]) -> None:
    """A checkpoint's own tensors say which parts are quantized; while loading, `skip` does."""
    parts = {"q": matrix(64, 64, 1), "k": matrix(32, 64, 2), "v": matrix(32, 64, 3)}
    config = EIGHT if kind == "int8" else four_bit(kind)
    read = QkvLinear("attn.qkv_proj", 64, 2, 1, 32, context(config), bias=True)
    ctx = context(None, format=kind, skip=tuple(f"attn.{name}_proj" for name in left_out)).replace(
        sources=lambda path: tuple(f"model.attn.{name}_proj" for name in parts)
    )
    made = QkvLinear("attn.qkv_proj", 64, 2, 1, 32, ctx, bias=True)
    wanted = []
    x = matrix(2, 64, 4)
    for name, weight in parts.items():
        bias = matrix(1, len(weight), 5)[0]
        own: Any = library_int8(weight, 6.0, bias) if kind == "int8" else library_linear(weight, kind, bias=bias)
        tensors = {"weight": weight, "bias": bias}
        fill(made, tensors, name)
        fill(read, tensors if name in left_out else tensors_of(own), name)
        with torch.inference_mode():
            wanted.append(torch.nn.functional.linear(x, weight, bias) if name in left_out else own(x))
    for layer in (read, made):
        layer.finish()
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), torch.cat(wanted, -1), rtol=0, atol=1e-6)


def test_a_layer_that_is_left_out() -> None:
    layer = plain_layer(8, 16, context(four_bit("nf4")))
    weight = matrix(8, 16)
    fill(layer, {"weight": weight})
    layer.finish()
    assert isinstance(layer.kernel, PlainKernel)
    assert torch.equal(dense(layer), weight)


def test_no_unquantized_storage_while_loading() -> None:
    """Before a tensor arrives and after it has been taken, the layer has room for the quantized weights alone."""
    layer = plain_layer(256, 512, context(None, format="nf4"))
    size = 256 * 512 // 2 + 256 * 512 // 64 * 4
    assert sum(p.nbytes for p in layer.parameters()) == size
    fill(layer, {"weight": matrix(256, 512)})
    assert not layer.group.plain
    layer.finish()
    assert sum(p.nbytes for p in layer.parameters()) == size


HEADER = "weight.quant_state.bitsandbytes__nf4"


def header(text: bytes) -> torch.Tensor:
    return torch.tensor(list(text), dtype=torch.uint8)


def damaged(name: str) -> dict[str, torch.Tensor]:
    tensors = tensors_of(library_linear(matrix(24, 64), "nf4", nested="plain" not in name))
    text = bytes(tensors[HEADER].numpy())
    changes: dict[str, dict[str, torch.Tensor]] = {
        "not JSON": {HEADER: header(text[:-3])},
        "pickle": {HEADER: header(b"\x80\x04K\x01.")},
        "no object": {HEADER: header(b"[1]")},
        "floats": {HEADER: torch.zeros(9)},
        "type": {HEADER: header(text.replace(b'"nf4"', b'"fp4"'))},
        "blocksize": {HEADER: header(text.replace(b'"blocksize": 64', b'"blocksize": 48'))},
        "nested_blocksize": {HEADER: header(text.replace(b'"nested_blocksize": 256', b'"nested_blocksize": 64'))},
        "nested_offset": {HEADER: header(text.replace(b'"nested_offset": 0', b'"nested_offset": NaN, "x": 0'))},
        "shape": {HEADER: header(text.replace(b"[24, 64]", b"[64, 24]"))},
        "absmax": {"weight.absmax": tensors["weight.absmax"][:-1]},
        "absmax dtype": {"weight.absmax": tensors["weight.absmax"].float()},
        "plain absmax": {"weight.absmax": tensors["weight.absmax"] * float("inf")},
        "quant_map": {"weight.quant_map": tensors["weight.quant_map"].flip(0)},
        "nested_absmax": {"weight.nested_absmax": torch.full((1,), float("nan"))} if "plain" not in name else {},
        "weight": {"weight": tensors["weight"][:-1]},
        "two headers": {"weight.quant_state.bitsandbytes__fp4": tensors[HEADER]},
    }
    return tensors | changes[name]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("not JSON", HEADER),
        ("pickle", HEADER),
        ("no object", HEADER),
        ("floats", HEADER),
        ("type", "quant_type"),
        ("blocksize", "blocksize is 48"),
        ("nested_blocksize", "nested_blocksize is 64"),
        ("nested_offset", "nested_offset"),
        ("shape", r"shape is \[64, 24\], expected \[24, 64\]"),
        ("absmax", r"layer.weight.absmax: torch.uint8 of shape \[23\]"),
        ("absmax dtype", "layer.weight.absmax"),
        ("plain absmax", "layer.weight.absmax has values that are not finite"),
        ("quant_map", "layer.weight.quant_map"),
        ("nested_absmax", "layer.weight.nested_absmax"),
        ("weight", "767"),
        ("two headers", "both"),
    ],
)
def test_damaged_tensors(name: str, wanted: str) -> None:
    layer = plain_layer(24, 64, context(four_bit("nf4")))
    with pytest.raises(WeightError, match=wanted):  # noqa: PT012
        fill(layer, damaged(name))
        layer.finish()


@pytest.mark.parametrize(
    "suffix", ["weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", HEADER]
)
def test_missing_tensors(suffix: str) -> None:
    tensors = tensors_of(library_linear(matrix(24, 64), "nf4", nested=True))
    del tensors[suffix]
    layer = plain_layer(24, 64, context(four_bit("nf4")))
    fill(layer, tensors)
    with pytest.raises(WeightError, match=f"layer.{suffix}"):
        layer.finish()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"SCB": None}, "layer.SCB is missing"),
        ({"SCB": torch.ones(23)}, "layer.SCB"),
        ({"SCB": torch.full((24,), float("nan"))}, "finite"),
        ({"weight_format": torch.tensor(1, dtype=torch.uint8)}, "weight_format is 1"),
        ({"weight": torch.zeros(24, 63, dtype=torch.int8)}, r"\[24, 64\]"),
    ],
)
def test_damaged_int8(change: dict[str, Any], wanted: str) -> None:
    tensors = {**tensors_of(library_int8(matrix(24, 64), 6.0)), **change}
    layer = plain_layer(24, 64, context(EIGHT))
    with pytest.raises(WeightError, match=wanted):  # noqa: PT012
        fill(layer, {name: tensor for name, tensor in tensors.items() if tensor is not None})
        layer.finish()


def test_state_of_a_weight_that_is_not_quantized() -> None:
    layer = plain_layer(24, 64, context(four_bit("nf4")))
    tensors = tensors_of(library_linear(matrix(24, 64), "nf4"))
    fill(layer, tensors | {"weight": matrix(24, 64)})
    with pytest.raises(WeightError, match="not quantized"):
        layer.finish()


@pytest.mark.parametrize("options", [{"format": "nf4"}, {"format": "fp4", "nested": True}, {"format": "int8"}])
def test_random_weights(options: dict[str, Any]) -> None:
    """`--load-format dummy` fills parameters and finishes."""
    from core.runner.weights import dummy_weights

    layer = plain_layer(64, 128, context(None, torch.bfloat16, **options))
    dummy_weights(layer, 1)
    assert layer(matrix(2, 128, 0, torch.bfloat16)).shape == (2, 64)


@pytest.mark.parametrize("config", [four_bit("nf4"), four_bit("fp4", bnb_4bit_use_double_quant=True), EIGHT])
def test_random_weights_of_a_quantized_checkpoint(config: dict[str, Any]) -> None:
    from core.runner.weights import dummy_weights

    layer = MergedLinear("mlp", 128, {"gate": 64, "up": 64}, context(config, torch.bfloat16), bias=False)
    dummy_weights(layer, 1)
    assert layer(matrix(2, 128, 0, torch.bfloat16)).shape == (2, 128)
