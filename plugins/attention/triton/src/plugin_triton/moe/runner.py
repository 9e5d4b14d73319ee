"""TritonMoe: the expert runner."""

from __future__ import annotations

from collections.abc import Callable

import torch

from core.interfaces.context import PluginContext
from core.interfaces.moe import PLAIN, ExpertWeights, MoeRunner
from plugin_triton.dependent import dependent
from plugin_triton.moe import fp8
from plugin_triton.moe.configs import Configs, MoeConfig, Served, Shape
from plugin_triton.moe.gemv import run_down, run_gate_up
from plugin_triton.moe.grouped import Grouped
from plugin_triton.moe.sorting import Sorting


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
        self._shapes: dict[Shape, _Shape] = {}
        self._last: BoundExperts | None = None  # of `run`
        self.served: dict[Shape, dict[int | None, Served]] = {}

    def run(
        self, x: torch.Tensor, weights: ExpertWeights, topk_ids: torch.Tensor, topk_weights: torch.Tensor
    ) -> torch.Tensor:
        if self._last is None or self._last.weights is not weights:
            self._last = self.bind(weights)
        return self._last(x, topk_ids, topk_weights)

    def bind(self, weights: ExpertWeights) -> BoundExperts:
        fp8.check(weights)
        return BoundExperts(weights, self._steps)

    def _steps(self, weights: ExpertWeights, top_k: int) -> _Shape:
        experts, hidden, inter = weights.down.shape
        kind = str(weights.down.dtype).removeprefix("torch.") if weights.format == PLAIN else weights.format
        shape = Shape(experts, top_k, hidden, inter, kind)
        if shape not in self._shapes:
            self._shapes[shape] = _Shape(lambda tokens: self._choose(shape, tokens), experts)
        return self._shapes[shape]

    def _choose(self, shape: Shape, tokens: int) -> MoeConfig:
        served = self._configs.pick(shape, tokens)
        if shape not in self.served:
            self.served[shape] = {}
            self.ctx.logger.info("experts %s: %s", shape, served.source)
        self.served[shape].setdefault(served.tuned_for, served)
        return served.config


class _Shape:
    """What layers of one shape have in common: for each number of tokens the tiles and how pairs are sorted (None: they
    are not), found once."""

    def __init__(self, choose: Callable[[int], MoeConfig], num_experts: int) -> None:
        self._choose, self._num_experts = choose, num_experts
        self._steps: dict[tuple[int, torch.dtype], tuple[MoeConfig, Sorting | None]] = {}
        self._configs: dict[MoeConfig, MoeConfig] = {}  # equal ones are one object

    def step(self, ids: torch.Tensor) -> tuple[MoeConfig, Sorting | None]:
        tokens, top_k = ids.shape
        found = self._steps.get((tokens, ids.dtype))
        if found is None:
            config = self._choose(tokens)
            config = self._configs.setdefault(config, config)
            sorting = None
            if config.block_m > 1:
                sorting = Sorting(tokens * top_k, self._num_experts, config.block_m, ids.dtype, ids.device)
            found = self._steps[tokens, ids.dtype] = config, sorting
        return found


class BoundExperts:
    """`MoeRunner.run` for the experts of one layer: kernels for each configuration, found once."""

    def __init__(self, weights: ExpertWeights, shape: Callable[[ExpertWeights, int], _Shape]) -> None:
        self.weights, self._shape_of = weights, shape
        self._shapes: dict[int, _Shape] = {}  # by experts of a token
        self._made: dict[tuple[int, torch.dtype, int, int], Grouped] = {}

    def __call__(self, x: torch.Tensor, ids: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        if not x.shape[0]:
            return torch.empty_like(x)
        top_k = ids.shape[1]
        shape = self._shapes.get(top_k)
        if shape is None:
            shape = self._shapes[top_k] = self._shape_of(self.weights, top_k)
        config, sorting = shape.step(ids)
        return self.compute(x, ids, factors, config, sorting)

    def compute(
        self, x: torch.Tensor, ids: torch.Tensor, factors: torch.Tensor, config: MoeConfig, sorting: Sorting | None
    ) -> torch.Tensor:
        stride, one = x.stride()
        if one != 1:
            x = x.contiguous()
            stride = x.shape[1]
        if not ids.is_contiguous():
            ids = ids.contiguous()
        if factors.dtype is not torch.float32 or not factors.is_contiguous():
            factors = factors.float().contiguous()
        if sorting is None:
            h = run_gate_up(x, self.weights, ids, config.gate_up)
            return run_down(h, self.weights, ids, factors, x.dtype, config.down)
        key = id(config), x.dtype, stride, ids.shape[1]  # configurations live as long as what chose them
        grouped = self._made.get(key)
        if grouped is None:
            grouped = self._made[key] = Grouped(self.weights, config, x.dtype, stride, ids.shape[1])
        return grouped(x, ids, factors, sorting)


def compute(
    x: torch.Tensor, weights: ExpertWeights, ids: torch.Tensor, factors: torch.Tensor, config: MoeConfig
) -> torch.Tensor:
    """As `MoeRunner.run`, for at least one token, with the given tiles."""
    shape = _Shape(lambda tokens: config, weights.down.shape[0])
    return BoundExperts(weights, lambda weights, top_k: shape)(x, ids, factors)
