"""Core's contracts of what the package brings. The suites find the device that a plugin needs by themselves."""

from __future__ import annotations

from core.testing.contracts.attention import AttentionContract
from core.testing.contracts.distribution import DistributionContract


class TestPaperAttention(AttentionContract):
    name = "paper"


class TestPackage(DistributionContract):
    package = "example_mock_chip"
