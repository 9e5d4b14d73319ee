"""The Triton kernels, in processes of their own: their numbers in the interpreter, and that a compiler takes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from core.ops.reference import REFERENCES
from plugin_fp8 import kernels, scales
from plugin_fp8.fused import Fused
from plugin_fp8.products import Dense, Grouped, Reference, Scaled, Weight, product_of

pytest.importorskip("triton")


def run(what: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "kernel_checks.py"), what], capture_output=True, text=True,
        timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_products_in_the_interpreter_equal_float64() -> None:
    assert "few" in run("numbers", TRITON_INTERPRET="1")


@pytest.mark.slow
def test_they_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    made = run("compile", TRITON_CACHE_DIR=str(tmp_path))
    assert made.count("True") == 3


class Stored:
    """A weight on a GPU, as far as a choice looks at it."""

    device = torch.device("cuda")

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def t(self) -> Stored:
        return self


class NoScratch(kernels.Scratch):
    """Reserves nothing, there is no such device."""

    def reserve(self, device: torch.device, rows: int, columns: int, group: int) -> None:
        assert kernels.takes_few(group, columns)


def test_which_product_serves_what() -> None:
    def kind(rows: int, columns: int, groups: int, group: int, static: bool = False) -> type:
        inputs = torch.ones(()) if static else None
        held = Weight(Stored(rows, columns), torch.ones(rows, groups), group, inputs, None)  # type: ignore[arg-type]
        return type(product_of(held, REFERENCES, NoScratch()))

    assert kind(64, 128, 1, 128) is Scaled
    assert kind(64, 128, 1, 128, static=True) is Scaled
    assert kind(60, 128, 1, 128) is Dense
    assert kind(64, 120, 1, 120) is Dense
    assert kind(60, 256, 2, 128) is Grouped
    assert kind(60, 256, 8, 32) is Grouped
    assert kind(60, 256, 16, 16) is Dense
    on_host = Weight(*scales.quantize_rows(torch.ones(4, 8)), 8, None, None)
    assert type(product_of(on_host, REFERENCES, kernels.Scratch())) is Reference
    assert kernels.takes_few(0, 4096)
    assert not kernels.takes_few(0, 4100)
    assert not kernels.takes_few(48, 4096)


class HostScaled(Scaled):
    """On the host, whose products few tokens have none of their own for."""

    def __init__(self, weight: Weight) -> None:
        super().__init__(weight, REFERENCES, kernels.Scratch())
        self.few = 0


@pytest.mark.parametrize("bias", [None, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("static", [False, True])
def test_torchs_scaled_product_is_the_reference(static: bool, bias: torch.dtype | None) -> None:
    """PyTorch has the same product for CPUs."""
    torch.manual_seed(1)
    stored, scale = scales.quantize_rows(torch.randn(64, 128) * 0.1)
    offset = None if bias is None else torch.randn(64).to(bias)
    held = Weight(stored, scale, 128, torch.tensor(4 / 448) if static else None, offset)
    x = torch.randn(9, 128).bfloat16()
    want = Reference(held)(x).float()
    product = HostScaled(held)
    try:
        got = product(x).float()
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this PyTorch has none: {error}")
    assert float((got - want).norm() / want.norm()) < 0.005
    assert product(x[:0]).shape == (0, 64)


@pytest.mark.parametrize("activation", [None, "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("norm", ["none", "first", "sum"])
def test_a_fused_layer_is_its_parts(norm: str, activation: str | None) -> None:
    """Where the norm has no kernel of its own; with one it is tested in the interpreter and on a GPU."""
    torch.manual_seed(2)
    stored, scale = scales.quantize_rows(torch.randn(64, 128) * 0.1)
    product = HostScaled(Weight(stored, scale, 128, None, None))
    product.multiply = lambda x, s, dtype: ((x.float() * s) @ (stored.float() * scale).t()).to(dtype)  # type: ignore[method-assign]
    fused = Fused(product, REFERENCES)
    fused.in_one = False
    x, residual, weight = torch.randn(5, 128), torch.randn(5, 128), torch.rand(128) + 0.5
    given = {"norm_weight": None if norm == "none" else weight, "residual": residual if norm == "sum" else None}
    y, total, normed = fused(x, eps=1e-5, activation=activation, keep_normed=True, **given)
    wide, wanted = x, None
    if norm != "none":
        wanted = x + residual if norm == "sum" else x
        wide = torch.rms_norm(wanted, (128,), weight, 1e-5)
    z = product(wide)
    if activation is not None:
        gate, up = z.chunk(2, -1)
        kinds = {"gelu": "none", "gelu_tanh": "tanh"}
        gate = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate=kinds[activation])
        z = gate * up
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(normed, wide)
    assert (total is None) == (wanted is None)
    if wanted is not None:
        torch.testing.assert_close(total, wanted)


def test_layers_share_their_scratch_memory() -> None:
    """It may be larger than a small layer's weight, and there is one of it whatever the number of layers."""
    scratch, found = kernels.Scratch(), []
    for _ in range(2):
        weight = Weight(torch.zeros(768, 384).to(scales.E4M3), torch.ones(768, 3), 128, None, None)
        assert Grouped(weight, REFERENCES, scratch).scratch is scratch
        assert scratch.memory is not None
        assert scratch.memory[0].nbytes > weight.stored.nbytes
        found.append(scratch.memory)
    assert found[0] is found[1]


def test_scratch_memory_only_grows() -> None:
    scratch = kernels.Scratch()
    cpu = torch.device("cpu")
    scratch.reserve(cpu, 28672, 4096, 0)
    assert scratch.memory is None  # many blocks of rows are not split
    scratch.reserve(cpu, 4096, 4096, 0)
    first = scratch.memory
    assert first is not None
    scratch.reserve(cpu, 1024, 4096, 0)
    assert scratch.memory is first
    scratch.reserve(cpu, 8192, 14336, 0)
    assert scratch.memory[0].numel() > first[0].numel()
    assert not scratch.memory[1].any()
