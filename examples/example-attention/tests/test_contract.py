"""Core's contract of attention backends, with the default blocks and with tiny ones, and of the package."""

from __future__ import annotations

from core.testing.contracts.attention import AttentionContract
from core.testing.contracts.distribution import DistributionContract


class TestStreaming(AttentionContract):
    name = "streaming"


class TestTinyBlocks(AttentionContract):
    """Many blocks even for short texts, so that the running softmax has something to run over."""

    name = "streaming"
    settings = {"block_tokens": 3}  # noqa: RUF012 - read only


class TestPackage(DistributionContract):
    package = "example_attention"
