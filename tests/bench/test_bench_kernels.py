"""`core bench kernels`: which implementations it finds, what it counts, and that each gives what it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from core.bench.ceilings import Ceilings
from core.bench.kernel_cases import Case, KernelCases
from core.bench.kernels import render_kernel, time_cases
from core.bench.timing import busy_s
from core.cli.bench import command as bench
from core.config.loading import load_settings

TINY = Path(__file__).parents[2] / "bench" / "shapes" / "tiny"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cases() -> KernelCases:
    given = {"model": str(TINY), "load_format": "dummy", "device": "cpu"}
    return KernelCases(load_settings(given, {}, origin="argument").settings)


def test_linear_layers_are_the_models_and_equal_torchs(cases: KernelCases) -> None:
    found = list(cases.linears([3]))
    assert [case.name.split(",")[0] for case in found] == [
        "qkv_proj 64->128", "o_proj 64->64", "gate 64->8", "gate_up_proj 64->256", "down_proj 128->64",
        "lm_head 64->512",
    ]  # fmt: skip
    qkv = found[0]
    assert qkv.ops == 2 * 3 * 64 * 128
    assert qkv.num_bytes == 4 * (64 * 128 + 3 * (64 + 128))
    shapes = {name: calls[0]().shape for name, calls in qkv.calls.items()}  # type: ignore[attr-defined]
    assert shapes == {"core": (3, 128), "torch": (3, 128)}


def test_attention_backends_all_compute_the_same_shape(cases: KernelCases) -> None:
    decode, prompt = cases.attention([(3, 1, 20), (2, 8, 8)])
    assert {"torch_native", "torch"} <= set(decode.calls)
    assert decode.failed == {}
    assert decode.num_bytes == 3 * 20 * 2 * 2 * 16 * 4
    assert decode.ops == 3 * 20 * 2 * 4 * (16 + 16)
    assert prompt.ops == 2 * 36 * 2 * 4 * (16 + 16)
    for name, calls in decode.calls.items():
        assert calls[0]().numel() == 3 * 4 * 16, name  # type: ignore[attr-defined]


def test_experts_go_through_every_runner(cases: KernelCases) -> None:
    (case,) = cases.experts([5])
    assert "torch_native" in case.calls
    assert case.ops == 2 * 3 * 64 * 32 * 2 * 5
    assert case.num_bytes % (4 * 3 * 64 * 32) == 0


def test_one_that_fails_is_named_and_the_others_are_timed() -> None:
    def broken() -> None:
        raise RuntimeError("no such kernel")

    case = Case("linear", "x", 8.0, 1.0, {"good": [lambda: torch.zeros(1)], "bad": [broken]})
    (figure,) = time_cases([case], Ceilings(8.0, 1e9), CPU)
    assert figure.limit_us == 1e6
    assert set(figure.us) == {"good"}
    assert "no such kernel" in figure.failed["bad"]
    assert "good" in render_kernel(figure)
    assert "bad failed" in render_kernel(figure)


def test_copies_are_taken_in_turn() -> None:
    seen: list[int] = []
    busy_s([lambda: seen.append(0), lambda: seen.append(1), lambda: seen.append(2)], CPU)
    assert set(seen) == {0, 1, 2}


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    words = [
        "kernels",
        "--model",
        str(TINY),
        "--load-format",
        "dummy",
        "--device",
        "cpu",
        "--rows",
        "2",
        "--divide",
        "64",
    ]
    done: Any = CliRunner().invoke(bench, [*words, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert {figure["kind"] for figure in found["kernels"]} == {"linear", "attention", "experts"}
    assert all(figure["us"] for figure in found["kernels"])
    only = CliRunner().invoke(bench, [*words, "linear", "--json"], catch_exceptions=False)
    assert {figure["kind"] for figure in json.loads(only.stdout)["kernels"]} == {"linear"}


@pytest.mark.parametrize("rows", ["", "0", "1,two"])
def test_rows_that_are_no_numbers(rows: str) -> None:
    done = CliRunner().invoke(bench, ["kernels", "--rows", rows])
    assert done.exit_code == 2
    assert "whole numbers" in done.output
