"""A ModelRunner over the mock model, ready to launch steps: the smallest engine room there is."""

from __future__ import annotations

from typing import Any, cast

import torch

from core.interfaces.attention import AttentionBackend
from core.interfaces.context import PluginContext
from core.interfaces.hardware import HardwareBackend
from core.layers.unquantized import Unquantized
from core.ops.table import build_ops
from core.runner.config import RunnerConfig
from core.runner.runner import ModelRunner
from core.testing.dense_attention import DenseAttention
from core.testing.mock_hardware import MockHardware
from core.testing.mock_model import MockConfig, MockModel


class SingleRank:
    """Communicator of a group of one."""

    rank = 0
    size = 1

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return x


def mock_runner_config(
    model: MockConfig | None = None,
    *,
    page_size: int = 4,
    max_running: int = 8,
    chunk_tokens: int = 64,
    attention: type[AttentionBackend] = DenseAttention,
) -> RunnerConfig:
    """Configuration of a runner for MockModel in float32. Experts are absent: no layer asks."""
    model = model or MockConfig()
    spec = MockModel.spec(model.hf_config())
    return RunnerConfig(
        spec=spec,
        arch=MockModel,
        quant=Unquantized(None, PluginContext()),
        moe=cast(Any, None),
        ops=build_ops(),
        attention=(attention,) * len(spec.cache_groups),
        tp=SingleRank(),
        dtype=torch.float32,
        page_size=page_size,
        max_running=max_running,
        chunk_tokens=chunk_tokens,
        context_length=model.context_length,
        load_format="dummy",
    )


def build_mock_runner(
    model: MockConfig | None = None,
    *,
    hardware: HardwareBackend | None = None,
    num_pages: int | None = None,
    page_size: int = 4,
    max_running: int = 8,
    chunk_tokens: int = 64,
    attention: type[AttentionBackend] = DenseAttention,
) -> ModelRunner:
    """Loaded, with `num_pages` KV pages (default: enough for max_running sequences of full length)."""
    config = mock_runner_config(
        model, page_size=page_size, max_running=max_running, chunk_tokens=chunk_tokens, attention=attention
    )
    runner = ModelRunner(config, hardware or MockHardware())
    runner.load()
    runner.allocate(num_pages or 1 + max_running * config.max_pages_per_seq)
    return runner
