"""TritonMoe: the expert runner."""

from __future__ import annotations

import torch

from core.interfaces.context import PluginContext
from core.interfaces.moe import PLAIN, ExpertWeights, MoeRunner
from plugin_triton.moe import fp8, launch
from plugin_triton.moe.configs import Configs, MoeConfig, Shape
from plugin_triton.moe.gemv import run_down, run_gate_up
from plugin_triton.moe.grouped import run_grouped


class TritonMoe(MoeRunner):
    """Experts on NVIDIA and AMD GPUs."""

    formats = frozenset(fp8.CODES)

    def __init__(self, ctx: PluginContext) -> None:
        super().__init__(ctx)
        device = ctx.device
        self._configs = Configs(torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else "")

    def run(
        self, x: torch.Tensor, weights: ExpertWeights, topk_ids: torch.Tensor, topk_weights: torch.Tensor
    ) -> torch.Tensor:
        if not x.shape[0]:
            return torch.empty_like(x)
        experts, hidden, inter = weights.down.shape
        kind = str(weights.down.dtype).removeprefix("torch.") if weights.format == PLAIN else weights.format
        shape = Shape(experts, topk_ids.shape[1], hidden, inter, kind)
        return compute(x, weights, topk_ids, topk_weights, self._configs.pick(shape, x.shape[0]).config)


def compute(
    x: torch.Tensor, weights: ExpertWeights, ids: torch.Tensor, factors: torch.Tensor, config: MoeConfig
) -> torch.Tensor:
    """As `MoeRunner.run`, with the given tiles."""
    overlap = launch.can_overlap(x.device)
    if config.block_m == 1:
        h = run_gate_up(x, weights, ids, config.gate_up, overlap)
        return run_down(h, weights, ids, factors, x.dtype, config.down, overlap)
    return run_grouped(x, weights, ids, factors, config, overlap)
