"""The attention suite over plans and calls, with kernels that stand in for the real ones.

The suite with the real ones is TestFa3 of tests/contracts/test_attention.py; it needs a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from fa3_backends import LATENTS, OnCpu, OnCpuWithVllm

from core.interfaces.context import PluginContext
from core.testing.contracts.attention import AttentionContract
from plugin_fa3.settings import Settings


class _Suite(AttentionContract):
    mla_dims = LATENTS

    def context(
        self, device: torch.device | None = None, settings: Mapping[str, Any] = MappingProxyType({})
    ) -> PluginContext:
        return replace(super().context(device), settings=Settings(**{**self.settings, **settings}))


class TestFa3Plans(_Suite):
    implementation = OnCpu


class TestFa3PlansSplit(_Suite):
    implementation = OnCpuWithVllm
    settings: ClassVar[Mapping[str, Any]] = {"num_splits": 3}
