"""Core's attention backends and this repository's through their suite."""

from __future__ import annotations

from core.testing.contracts.attention import AttentionContract
from core.testing.dense_attention import DenseAttention


class TestTorchNative(AttentionContract):
    name = "torch_native"


class TestCpuNative(AttentionContract):
    name = "cpu_native"


class TestDense(AttentionContract):
    implementation = DenseAttention
