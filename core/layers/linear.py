"""Linear layers: fused projections, sharded over tensor-parallel ranks, stored as the quantization method says."""

from __future__ import annotations

import torch

from core.interfaces.build import BuildContext, Communicator
from core.interfaces.errors import ConfigError, WeightError
from core.interfaces.quant import FusedLinear, LinearMethod, LinearPart, LinearShape
from core.layers.module import NO_EXPERT, Slot, WeightModule


def shard(total: int, tp: Communicator, what: str) -> int:
    """`total / tp.size`. Raises ConfigError if it does not divide."""
    if total % tp.size:
        raise ConfigError(
            f"{what} = {total} cannot be shared evenly by {tp.size} ranks",
            field="engine.tensor_parallel_size",
            value=tp.size,
            hint=f"choose a tensor-parallel size that divides {total}",
        )
    return total // tp.size


def kv_shard(num_kv_heads: int, tp: Communicator) -> tuple[int, int]:
    """(number of KV heads on this rank, index of the first). With more ranks than heads, heads are replicated."""
    if tp.size <= num_kv_heads:
        local = shard(num_kv_heads, tp, "num_key_value_heads")
        return local, tp.rank * local
    if tp.size % num_kv_heads:
        raise ConfigError(
            f"num_key_value_heads = {num_kv_heads} cannot be replicated evenly over {tp.size} ranks",
            field="engine.tensor_parallel_size",
            value=tp.size,
            hint=f"choose a multiple or a divisor of {num_kv_heads}",
        )
    return 1, tp.rank * num_kv_heads // tp.size


class LinearBase(WeightModule):
    """y = x Wᵀ + b over the rows of this rank. x [T, in_features] -> [T, out_features].

    Storage and arithmetic belong to the `LinearMethod`; `ops` is where a method finds the operations of the device.
    `fused`: the same with a norm before and an activation behind it in one, or None (see `LinearMethod.fused`).
    """

    fused: FusedLinear | None = None

    def __init__(self, shape: LinearShape, ctx: BuildContext, method: LinearMethod | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.ops = ctx.ops
        self.method = method or ctx.quant.linear(shape.path, ctx.sources(shape.path))
        self.method.create(self, shape, ctx.dtype, ctx.device)

    def expected(self) -> set[Slot]:
        return {(suffix, part, NO_EXPERT) for suffix, part in self.method.expected(self.shape)}

    def covers(self, suffix: str, part: str, expert: int = NO_EXPERT) -> set[Slot]:
        if expert == NO_EXPERT and (suffix, part) in self.method.optional(self.shape):
            return set()
        return {(suffix, part, expert)}

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        if expert is not None:
            raise WeightError(f"{self.shape.path} has no experts, but tensor is of expert {expert}")
        self.method.load(self, self.shape, suffix, part, tensor)

    def finish(self) -> None:
        self.method.finish(self, self.shape)
        self.__dict__["fused"] = self.method.fused(self, self.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.method.apply(self, x)

    def extra_repr(self) -> str:
        return f"{self.shape.path}, {self.shape.in_features} -> {self.shape.out_features}, bias={self.shape.bias}"


class ReplicatedLinear(LinearBase):
    """The whole layer on every rank. out_features: rows, or the rows of each part where several projections of one
    input are one matrix."""

    def __init__(
        self, path: str, in_features: int, out_features: int | dict[str, int], ctx: BuildContext, *, bias: bool
    ) -> None:
        rows = {"": out_features} if isinstance(out_features, int) else out_features
        parts: list[LinearPart] = []
        offset = 0
        for name, full in rows.items():
            parts.append(LinearPart(name, full, offset, full))
            offset += full
        super().__init__(LinearShape(path, in_features, tuple(parts), bias, in_features), ctx)


class QkvLinear(LinearBase):
    """Query, key and value projections as one matrix: parts "q", "k", "v", in this order.

    Query heads are split over the ranks; so are KV heads, until there are more ranks than heads: then each is kept
    by several ranks. num_heads, num_kv_heads (arguments): whole model; the attributes of that name: this rank.
    """

    def __init__(
        self,
        path: str,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        ctx: BuildContext,
        *,
        bias: bool,
        v_head_dim: int = 0,
    ) -> None:
        self_heads = shard(num_heads, ctx.tp, "num_attention_heads")
        kv_heads, first_kv = kv_shard(num_kv_heads, ctx.tp)
        v_dim = v_head_dim or head_dim
        q_rows, k_rows, v_rows = self_heads * head_dim, kv_heads * head_dim, kv_heads * v_dim
        parts = (
            LinearPart("q", q_rows, 0, num_heads * head_dim, ctx.tp.rank * q_rows),
            LinearPart("k", k_rows, q_rows, num_kv_heads * head_dim, first_kv * head_dim),
            LinearPart("v", v_rows, q_rows + k_rows, num_kv_heads * v_dim, first_kv * v_dim),
        )
        super().__init__(LinearShape(path, hidden_size, parts, bias, hidden_size), ctx)
        self.num_heads = self_heads
        self.num_kv_heads = kv_heads


class MergedLinear(LinearBase):
    """Several column-parallel projections of one input as one matrix, e.g. parts "gate" and "up".

    stacked: the checkpoint has one tensor of part "" with the rows of all parts, in their order. One rank takes it as
    it stands, whatever the format; over several its rows are dealt out part by part.
    """

    def __init__(
        self,
        path: str,
        in_features: int,
        parts: dict[str, int],
        ctx: BuildContext,
        *,
        bias: bool,
        stacked: bool = False,
    ) -> None:
        if stacked and ctx.tp.size == 1:
            parts = {"": sum(parts.values())}
        placed: list[LinearPart] = []
        offset = 0
        for name, full in parts.items():
            local = shard(full, ctx.tp, f"{path}.{name}")
            placed.append(LinearPart(name, local, offset, full, ctx.tp.rank * local))
            offset += local
        super().__init__(LinearShape(path, in_features, tuple(placed), bias, in_features), ctx)
        self.dealt_out = stacked and ctx.tp.size > 1

    def covers(self, suffix: str, part: str, expert: int = NO_EXPERT) -> set[Slot]:
        if part or not self.dealt_out:
            return super().covers(suffix, part, expert)
        return set().union(*(super(MergedLinear, self).covers(suffix, p.name, expert) for p in self.shape.parts))

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        if part or not self.dealt_out:
            super().load(suffix, part, tensor, expert)
            return
        if expert is not None:
            raise WeightError(f"{self.shape.path} has no experts, but tensor is of expert {expert}")
        self.method.load_stacked(self, self.shape, suffix, tensor)


class RowLinear(LinearBase):
    """Input split over the ranks, partial results summed over them. The bias lives on rank 0 alone.

    reduce: False leaves the sum over the ranks to the caller, who adds more to it first.
    """

    def __init__(
        self, path: str, in_features: int, out_features: int, ctx: BuildContext, *, bias: bool, reduce: bool = True
    ) -> None:
        local = shard(in_features, ctx.tp, path)
        part = LinearPart("", out_features, 0, out_features)
        super().__init__(LinearShape(path, local, (part,), bias, in_features, ctx.tp.rank * local), ctx)
        self.rank = ctx.tp.rank
        self.all_reduce = ctx.tp.all_reduce if reduce and ctx.tp.size > 1 else None

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        # The sum over ranks must count the bias once.
        if suffix == "bias" and self.rank:
            tensor = torch.zeros_like(tensor)
        super().load(suffix, part, tensor, expert)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.method.apply(self, x)
        return y if self.all_reduce is None else self.all_reduce(y)
