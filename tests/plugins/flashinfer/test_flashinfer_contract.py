"""The attention suite over plans and calls, with a wrapper that stands in for FlashInfer's.

The suite with the real one is TestFlashInfer of tests/contracts/test_attention.py; it needs a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from fake_flashinfer import FakeWrapper

from core.interfaces.context import PluginContext
from core.testing.contracts.attention import AttentionContract
from plugin_flashinfer.backend import FlashInferAttention
from plugin_flashinfer.settings import Settings


class OnCpu(FlashInferAttention):
    capabilities = replace(FlashInferAttention.capabilities, hardware=None)

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    def _load(self) -> Any:
        return FakeWrapper


class TestFlashInferPlans(AttentionContract):
    implementation = OnCpu

    def context(
        self, device: torch.device | None = None, settings: Mapping[str, Any] = MappingProxyType({})
    ) -> PluginContext:
        return replace(super().context(device), settings=Settings(workspace_mib=32, **settings))
