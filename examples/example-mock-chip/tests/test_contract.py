"""Core's contracts of what the package brings. The suites find the device that a plugin needs by themselves."""

from __future__ import annotations

from core.testing.contracts.attention import AttentionContract
from core.testing.contracts.distribution import DistributionContract
from core.testing.contracts.hardware import HardwareContract
from core.testing.contracts.ops import OpsContract


class TestPaperChip(HardwareContract):
    name = "paper"


class TestPaperAttention(AttentionContract):
    name = "paper"


class TestPaperOps(OpsContract):
    name = "paper"
    dtypes = ("float32", "bfloat16")  # what the chip computes in


class TestPackage(DistributionContract):
    package = "example_mock_chip"
