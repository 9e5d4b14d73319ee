"""The backend with stand-in kernels, so that it runs on the CPU."""

from __future__ import annotations

from dataclasses import replace

from fake_fa3 import FakeSglang, FakeVllm

from plugin_fa3.backend import Fa3Attention
from plugin_fa3.providers.base import Provider

# Sizes of latents to test with, as (latent, rope, nope, value): DeepSeek's, GLM-4.7-Flash's, and one whose keys and
# values the kernels do not take once they are expanded.
LATENTS = ((512, 64, 128, 128), (512, 64, 192, 256), (512, 64, 64, 64))


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
