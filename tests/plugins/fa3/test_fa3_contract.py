"""The attention suite over plans and calls, with kernels that stand in for the real ones.

The suite with the real ones is TestFa3 of tests/contracts/test_attention.py; it needs a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from fake_fa3 import FakeSglang, FakeVllm

from core.interfaces.context import PluginContext
from core.testing.contracts.attention import AttentionContract
from plugin_fa3.backend import Fa3Attention
from plugin_fa3.providers.base import Provider
from plugin_fa3.settings import Settings


class OnCpu(Fa3Attention):
    capabilities = replace(Fa3Attention.capabilities, hardware=None)

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    def _choose_provider(self) -> Provider:
        return FakeSglang()


class OnCpuWithVllm(OnCpu):
    def _choose_provider(self) -> Provider:
        return FakeVllm()


class _Suite(AttentionContract):
    def context(
        self, device: torch.device | None = None, settings: Mapping[str, Any] = MappingProxyType({})
    ) -> PluginContext:
        return replace(super().context(device), settings=Settings(**{**self.settings, **settings}))


class TestFa3Plans(_Suite):
    implementation = OnCpu


class TestFa3PlansSplit(_Suite):
    implementation = OnCpuWithVllm
    settings = {"num_splits": 3}
