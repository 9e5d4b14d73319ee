"""Core's attention backends and this repository's through their suite."""

from __future__ import annotations

from collections.abc import Callable

from core.testing.contracts.attention import AttentionContract
from core.testing.dense_attention import DenseAttention


class TestTorchNative(AttentionContract):
    name = "torch_native"


class TestBatchInvariant(AttentionContract):
    name = "batch_invariant"


class TestCpuNative(AttentionContract):
    name = "cpu_native"


class TestFa3(AttentionContract):
    """Needs a GPU; what is around the kernels is tested without one in tests/plugins/fa3."""

    name = "fa3"
    mla_dims = ((512, 64, 128, 128), (512, 64, 192, 256), (512, 64, 64, 64))


class TestFlashInfer(AttentionContract):
    """Needs a GPU, as TestFa3 does; see tests/plugins/flashinfer."""

    name = "flashinfer"


class TestDense(AttentionContract):
    implementation = DenseAttention


def test_broken_backends_are_caught(assert_caught: Callable[[str], None]) -> None:
    assert_caught("attention")
