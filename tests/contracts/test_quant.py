"""Unquantized weights, and a small quantized format, through the quantization suite."""

from __future__ import annotations

from collections.abc import Callable

from core.testing.contracts.quant import QuantContract
from core.testing.contracts.quant_setup import Variant
from tests.contracts.toy_quant import Toy
from tests.contracts.toy_setup import ToySetup


class TestNone(QuantContract):
    name = "none"
    variants = (Variant("unquantized"),)
    dtypes = ("float32", "bfloat16", "float16")


class TestToy(ToySetup):
    implementation = Toy


def test_broken_methods_are_caught(assert_caught: Callable[[str], None]) -> None:
    assert_caught("quant")
