"""The contract of attention backends, on a GPU, or in Triton's interpreter on the CPU.

The interpreter takes a hundredth of a second for a program, so there the suite runs with fewer sizes and examples, and
without the tests of many or long sequences (`test_triton_attention_parts` has long ones).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from core.testing.contracts.attention import AttentionContract
from plugin_triton.attention.backend import TritonAttention

ON_GPU = torch.cuda.is_available()
LONG = ("many_sequences", "long_prompts", "every_page_holds_tokens")
SIZES = {"page_sizes": (4, 7, 16), "head_dims": (16, 20, 80)}


class Anywhere(TritonAttention):
    """The interpreter runs kernels on the CPU."""

    capabilities = replace(TritonAttention.capabilities, hardware=None)


class TestTritonAttention(AttentionContract):
    name = "triton"
    implementation = Anywhere

    def hardware(self) -> str:
        return "nvidia" if ON_GPU else "cpu"

    def device(self) -> torch.device:
        return torch.device("cuda", 0) if ON_GPU else torch.device("cpu")

    @pytest.fixture(autouse=True)
    def short(self, request: pytest.FixtureRequest) -> None:
        if not ON_GPU and any(word in request.node.name for word in LONG):
            pytest.skip("too long for the interpreter")

    def page_sizes(self) -> tuple[int, ...]:
        return super().page_sizes() if ON_GPU else SIZES["page_sizes"]

    def head_dims(self) -> tuple[int, ...]:
        return super().head_dims() if ON_GPU else SIZES["head_dims"]

    def example_settings(self, examples: int) -> Any:
        return super().example_settings(examples if ON_GPU else 2)
