"""The contract of attention backends, on a GPU, or in Triton's interpreter on the CPU."""

from __future__ import annotations

from dataclasses import replace

import torch

from core.testing.contracts.attention import AttentionContract
from plugin_triton.attention.backend import TritonAttention


class Anywhere(TritonAttention):
    """The interpreter runs kernels on the CPU."""

    capabilities = replace(TritonAttention.capabilities, hardware=None)


class TestTritonAttention(AttentionContract):
    name = "triton"
    implementation = Anywhere

    def hardware(self) -> str:
        return "nvidia" if torch.cuda.is_available() else "cpu"

    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
