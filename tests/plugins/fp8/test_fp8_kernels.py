"""The Triton kernels, in processes of their own: their numbers in the interpreter, and that a compiler takes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plugin_fp8 import kernels, scales
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
    assert made.count("True") >= 8


def test_which_product_serves_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU; here the decision alone."""

    class Stored:
        device = torch.device("cuda")

        def __init__(self, *shape: int) -> None:
            self.shape = shape

        def t(self) -> Stored:
            return self

    def kind(rows: int, columns: int, groups: int, group: int, few_rows: int = 0, static: bool = False) -> type:
        inputs = torch.ones(()) if static else None
        held = Weight(Stored(rows, columns), torch.ones(rows, groups), group, inputs, None)  # type: ignore[arg-type]
        return type(product_of(held, {}, few_rows, kernels.Scratch()))

    assert kind(64, 128, 1, 128) is Scaled
    assert kind(60, 128, 1, 128) is Dense
    assert kind(64, 120, 1, 120) is Dense
    assert kind(60, 256, 2, 128) is Grouped
    assert kind(60, 256, 8, 32) is Grouped
    assert kind(60, 256, 16, 16) is Dense
    assert (
        product_of(Weight(*scales.quantize_rows(torch.ones(4, 8)), 8, None, None), {}, 8, kernels.Scratch()).__class__
        is Reference
    )
    assert kernels.takes_few(0, 4096)
    assert not kernels.takes_few(0, 4100)
    assert not kernels.takes_few(48, 4096)


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
    try:
        got = Scaled(held, {})(x).float()
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this PyTorch has none: {error}")
    assert float((got - want).norm() / want.norm()) < 0.005


def test_scratch_memory_only_grows() -> None:
    scratch = kernels.Scratch()
    cpu = torch.device("cpu")
    scratch.reserve(cpu, 4096, 4096, 0, 32)
    assert scratch.memory is not None
    first = scratch.memory
    scratch.reserve(cpu, 1024, 4096, 0, 32)
    assert scratch.memory is first
    scratch.reserve(cpu, 8192, 4096, 0, 64)
    assert scratch.memory[0].numel() > first[0].numel()
    assert not scratch.memory[1].any()
