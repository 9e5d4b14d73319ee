"""What this machine lacks for FlashInfer, what it refuses, and the arrays it is given."""

from __future__ import annotations

import builtins
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_flashinfer_contract import OnCpu

from core.interfaces.batch import BatchLayout
from core.interfaces.errors import ConfigError
from core.interfaces.spec import StateKind
from core.testing.contracts.attention_world import Shape
from plugin_flashinfer import library
from plugin_flashinfer.backend import FlashInferAttention
from plugin_flashinfer.pages import paged_rows
from plugin_flashinfer.settings import Settings

SHAPE = Shape(kind=StateKind.FULL, head_dim=128, page_size=16, dtype=torch.bfloat16)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine with these packages and, perhaps, a compiler: `machine("flashinfer", nvcc=True)`."""

    def make(*packages: str, nvcc: bool = False) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in packages else None)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
        monkeypatch.delenv("CUDA_PATH", raising=False)
        compiler = tmp_path / "cuda" / "bin" / "nvcc"
        if nvcc:
            compiler.parent.mkdir(parents=True)
            compiler.write_text("")

    return make


def test_what_is_missing_is_said_with_the_way_out(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    assert FlashInferAttention.unavailable() == "flashinfer is not installed: pip install flashinfer-python"
    monkeypatch.setattr(library, "has_compiler", lambda: False)
    machine("flashinfer")
    assert "no nvcc: install the CUDA toolkit and set CUDA_HOME" in str(FlashInferAttention.unavailable())
    machine("flashinfer", "flashinfer_jit_cache")
    assert FlashInferAttention.unavailable() is None


def test_the_compiler_is_looked_for_where_flashinfer_does(machine: Any) -> None:
    machine("flashinfer", nvcc=True)
    assert library.has_compiler()
    assert FlashInferAttention.unavailable() is None


def test_an_import_that_fails_is_an_error_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "flashinfer":
            raise ImportError("tvm_ffi is too old")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ConfigError, match="flashinfer cannot be imported: ImportError: tvm_ffi is too old") as caught:
        library.wrapper()
    assert caught.value.hint is not None


def test_what_no_kernel_serves_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert OnCpu.rejects(SHAPE.config(cpu)) is None
    assert OnCpu.rejects(replace(SHAPE, v_head_dim=64).config(cpu)) == "values of 64 elements beside keys of 128"
    heads = replace(SHAPE, num_heads=6, num_kv_heads=4)
    assert OnCpu.rejects(heads.config(cpu)) == "6 query heads are not a multiple of 4 KV heads"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    reason = FlashInferAttention.rejects(SHAPE.config(torch.device("cuda", 0)))
    assert reason == "cuda:0 has compute capability 7.5, it needs 8.0"


@pytest.mark.parametrize("value", [{"kernels": "fa4"}, {"workspace_mib": 1}, {"kernel": "fa2"}])
def test_wrong_settings_are_named(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(value))):
        Settings(**value)


def test_pages_of_sequences_lie_one_after_the_other() -> None:
    q_lens, lens = np.array([1, 1, 5, 16], np.int32), np.array([16, 17, 5, 40], np.int32)
    table = np.array([[3, 0, 9], [4, 5, 9], [6, 0, 0], [7, 8, 2]], np.int32)  # behind the last page: anything
    cu = np.array([0, 1, 2, 7, 23], np.int32)
    layout = BatchLayout(16, 2, q_lens, lens, cu, table, torch.zeros(23, dtype=torch.int64))
    decodes, prefills = paged_rows(layout, 0, 2), paged_rows(layout, 2, 4)
    assert decodes.pages.tolist() == [3, 4, 5]
    assert decodes.page_starts.tolist() == [0, 1, 3]
    assert decodes.last_lens.tolist() == [16, 1]
    assert (decodes.first_row, decodes.last_row, decodes.max_q) == (0, 2, 1)
    assert prefills.pages.tolist() == [6, 7, 8, 2]
    assert prefills.q_starts.tolist() == [0, 5, 21]
    assert prefills.last_lens.tolist() == [5, 8]
    assert (prefills.first_row, prefills.last_row, prefills.max_q) == (2, 23, 16)
