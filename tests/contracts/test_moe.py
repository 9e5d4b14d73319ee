"""Core's runner of experts through its suite."""

from __future__ import annotations

from collections.abc import Callable

from core.testing.contracts.moe import MoeContract


class TestTorchNative(MoeContract):
    name = "torch_native"
    dtypes = ("float32", "bfloat16", "float16")


def test_broken_runners_are_caught(assert_caught: Callable[[str], None]) -> None:
    assert_caught("moe")
