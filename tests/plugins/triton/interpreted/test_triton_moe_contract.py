"""The contract of expert runners, on Triton's."""

from __future__ import annotations

import os
from typing import ClassVar

import pytest

from core.interfaces.moe import PLAIN, ExpertWeights
from core.testing.contracts.moe import MoeContract
from plugin_triton.moe import configs, fp8
from plugin_triton.moe.configs import MoeConfig, Shape, Tile
from plugin_triton.moe.runner import TritonMoe

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def few_programs(shape: Shape, tokens: int, large: bool) -> MoeConfig:
    """The interpreter takes as long for a small tile as for a large one."""
    if tokens <= 4:
        return MoeConfig(1, Tile(64, 64), Tile(64, 64, stages=2))
    return MoeConfig(16, Tile(64, 64), Tile(64, 64))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setattr(configs, "fallback", few_programs)


class TestTritonMoe(MoeContract):
    name = "triton"
    # In the interpreter kernels run on the CPU, which the manifest does not name.
    implementation: ClassVar[object] = TritonMoe if INTERPRETED else None
    # Weights are rounded to 3 bits behind the point (3 % on average), activations twice.
    format_errors: ClassVar[dict[str, float]] = dict.fromkeys((fp8.TENSOR, fp8.CHANNEL, fp8.BLOCK), 0.1)

    def packed(self, format_: str, weights: ExpertWeights) -> ExpertWeights:
        return weights if format_ == PLAIN else fp8.pack(weights, format_)
