"""The contract of op tables, on Triton's operations."""

from __future__ import annotations

import os
from typing import ClassVar

import pytest
import torch

from core.testing.contracts.ops import OpsContract
from plugin_triton.ops import threshold
from plugin_triton.ops.table import TritonOps

# The interpreter's numpy warns of numbers that overflow to what they should be, infinity.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class TestTritonOps(OpsContract):
    name = "triton"
    # In the interpreter kernels run on the CPU, which the manifest does not name.
    implementation: ClassVar[object] = TritonOps if INTERPRETED else None
    sizes = (64, 300) if INTERPRETED else (64, 128, 300, 2048, 20_000)
    dtypes = ("float32", "bfloat16", "float16")

    @pytest.fixture(autouse=True)
    def few_programs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The interpreter runs one program after the other."""
        if INTERPRETED:
            monkeypatch.setattr(threshold, "_PROGRAMS", 4)

    def test_it_gives_what_the_reference_gives(self, op: str, dtype: torch.dtype) -> None:
        if INTERPRETED and op == "sampling_threshold" and dtype is not torch.float32:
            pytest.skip("slow, and its arguments are float32 in every case")
        super().test_it_gives_what_the_reference_gives(op, dtype)
