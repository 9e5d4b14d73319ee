"""TritonMoe: the expert runner."""

from __future__ import annotations

import torch

from core.interfaces.context import PluginContext
from core.interfaces.moe import PLAIN, ExpertWeights, MoeRunner
from plugin_triton.dependent import dependent
from plugin_triton.moe import fp8
from plugin_triton.moe.configs import Configs, MoeConfig, Served, Shape
from plugin_triton.moe.gemv import run_down, run_gate_up
from plugin_triton.moe.grouped import run_grouped


class TritonMoe(MoeRunner):
    """Experts on NVIDIA and AMD GPUs, without waiting for the device, so that steps can be recorded in graphs.

    A few tokens: two kernels stream the chosen experts' weights. More: pairs of token and expert are sorted by expert,
    two kernels multiply blocks of one expert's rows, a last one sums over the experts of a token, in float32 and in
    order. Formats: "plain" in float32, bfloat16 or float16, and 8-bit ones with the layouts of `fp8`.

    served: which tiles computed what so far, by shape and by the table's entry (its number of tokens; None where no
    table has the shape).
    """

    formats = frozenset(fp8.CODES)

    def __init__(self, ctx: PluginContext) -> None:
        super().__init__(ctx)
        device = ctx.device if ctx.device is not None else torch.device("cpu")
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self._configs = Configs(name, dependent(device), getattr(ctx.settings, "tables", None))
        self._known: dict[tuple[Shape, int], MoeConfig] = {}
        self.served: dict[Shape, dict[int | None, Served]] = {}

    def run(
        self, x: torch.Tensor, weights: ExpertWeights, topk_ids: torch.Tensor, topk_weights: torch.Tensor
    ) -> torch.Tensor:
        if not x.shape[0]:
            return torch.empty_like(x)
        experts, hidden, inter = weights.down.shape
        kind = str(weights.down.dtype).removeprefix("torch.") if weights.format == PLAIN else weights.format
        shape = Shape(experts, topk_ids.shape[1], hidden, inter, kind)
        config = self._known.get((shape, x.shape[0]))
        if config is None:
            config = self._choose(shape, weights, x.shape[0])
        return compute(x, weights, topk_ids, topk_weights, config)

    def _choose(self, shape: Shape, weights: ExpertWeights, tokens: int) -> MoeConfig:
        served = self._configs.pick(shape, tokens)
        if shape not in self.served:
            fp8.check(weights)
            self.served[shape] = {}
            self.ctx.logger.info("experts %s: %s", shape, served.source)
        self.served[shape].setdefault(served.tuned_for, served)
        self._known[shape, tokens] = served.config
        return served.config


def compute(
    x: torch.Tensor, weights: ExpertWeights, ids: torch.Tensor, factors: torch.Tensor, config: MoeConfig
) -> torch.Tensor:
    """As `MoeRunner.run`, for at least one token, with the given tiles."""
    x = x if x.stride(1) == 1 else x.contiguous()
    ids, factors = ids.contiguous(), factors.float().contiguous()
    if config.block_m == 1:
        h = run_gate_up(x, weights, ids, config.gate_up)
        return run_down(h, weights, ids, factors, x.dtype, config.down)
    return run_grouped(x, weights, ids, factors, config)
