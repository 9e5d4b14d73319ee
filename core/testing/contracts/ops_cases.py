"""Calls to try each operation of `core.ops.reference` with: shapes, strides, and what must come out.

What lives here: one function an operation that makes random arguments. What does not: how results are compared
(`ops`), except for operations whose result is not unique.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from core.ops.sampling import spread_ids

Results = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Call:
    """args, kwargs: of one call. changes: positions of arguments that the operation may write to. results: of those
    arguments, the ones whose contents are the result. dtype: of floating-point results, where it is not the arguments'.
    same: whether the reference gets the very arguments, and not float64 ones, since it decides between close values."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    same: bool = False


@dataclass
class Maker:
    """Makes random tensors. rows: tokens. size: a width to take as given. apart: whether rows lie apart in memory, as
    slices of something wider do. variety: any number, for choices."""

    rows: int
    size: int
    dtype: torch.dtype
    device: torch.device
    apart: bool
    variety: int

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.variety)

    def plain(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.dtype).to(self.device)

    def rows_of(self, *shape: int) -> torch.Tensor:
        """[rows, *shape], possibly a slice of something wider."""
        if not self.apart:
            return self.plain(self.rows, *shape)
        return self.plain(self.rows, shape[0] + 3, *shape[1:])[:, 2:-1]

    def choose(self, *values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=self.generator))]

    def positions(self, limit: int) -> torch.Tensor:
        return torch.randint(limit, (self.rows,), generator=self.generator).to(self.device)

    def angles(self, limit: int, width: int) -> torch.Tensor:
        """cos_sin [limit, width] float32"""
        angle = torch.rand(limit, width // 2, generator=self.generator) * 6.3
        return torch.cat((angle.cos(), angle.sin()), -1).to(self.device)


def linear(make: Maker) -> Call:
    columns = make.choose(1, 32, 64, 96, 100)
    bias = make.plain(make.size) if make.choose(True, False) else None
    return Call((make.rows_of(columns), make.plain(make.size, columns), bias))


def pack_linear_weight(make: Maker) -> Call:
    """Compared by what the table's `linear` makes of it."""
    return linear(make)


def fused_linear(make: Maker) -> Call:
    columns = make.choose(8, 32, 64, 100)
    activation = make.choose(None, None, "silu", "gelu", "gelu_tanh")
    num = max(make.size, 24)  # of so many results not all cancel out
    num = num if activation is None else 2 * num
    kwargs: dict[str, Any] = {"activation": activation}
    if make.choose(True, True, False):
        residual = make.plain(make.rows, columns) if make.choose(True, False) else None
        kwargs |= {"residual": residual, "norm_weight": make.plain(columns), "eps": make.choose(1e-6, 0.3)}
        kwargs["keep_normed"] = make.choose(True, False)
    bias = make.plain(num) if make.choose(True, False) else None
    return Call((make.rows_of(columns), make.plain(num, columns), bias), kwargs)


def rms_norm(make: Maker) -> Call:
    x = make.rows_of(3, make.size) if make.choose(True, False) else make.rows_of(make.size)
    return Call((x, make.plain(make.size), make.choose(1e-6, 1e-5, 0.3)))


def add_rms_norm(make: Maker) -> Call:
    residual = make.plain(make.rows, make.size)
    return Call((make.rows_of(make.size), residual, make.plain(make.size), make.choose(1e-6, 0.3)))


def qk_norm(make: Maker) -> Call:
    return Call((make.rows_of(make.choose(1, 2, 5), make.size), make.plain(make.size), make.choose(1e-6, 0.3)))


def _rope(make: Maker) -> tuple[int, torch.Tensor, torch.Tensor, dict[str, Any]]:
    width = 2 * max(1, make.size // 2)  # of a head
    turned = make.choose(width, 2 * max(1, width // 4))
    return width, make.angles(50, turned), make.positions(50), {"interleaved": make.choose(True, False)}


def rope(make: Maker) -> Call:
    width, angles, positions, kwargs = _rope(make)
    num_q, num_k = make.choose(1, 4, 6), make.choose(1, 2)
    if make.apart:  # as slices of a fused projection
        q, k, _ = make.plain(make.rows, num_q + 2 * num_k, width).split((num_q, num_k, num_k), 1)
    else:
        q, k = make.plain(make.rows, num_q, width), make.plain(make.rows, num_k, width)
    return Call((q, k, angles, positions), kwargs)


def qk_norm_rope(make: Maker) -> Call:
    width, angles, positions, kwargs = _rope(make)
    heads = (make.choose(1, 4, 6), *[make.choose(1, 2)] * 2)
    weights = [make.plain(width) if make.choose(True, True, False) else None for _ in range(2)]
    return Call((make.plain(make.rows, sum(heads), width), heads, *weights, make.choose(1e-6, 0.3), angles, positions),
                kwargs, changes=(0,))  # fmt: skip


def qk_norm_rope_store(make: Maker) -> Call:
    call = qk_norm_rope(make)
    qkv, (_, num_k, num_v), *_ = call.args
    num_slots = make.rows + 7
    caches = make.plain(num_slots, num_k, qkv.shape[2]), make.plain(num_slots, num_v, qkv.shape[2])
    return Call((*call.args, *caches, _slots(make, num_slots)), call.kwargs, changes=(0, 7, 8), results=(7, 8))


def silu_and_mul(make: Maker) -> Call:
    return Call((make.rows_of(2 * make.size),))


def gelu_and_mul(make: Maker) -> Call:
    return Call((make.rows_of(2 * make.size), make.choose("none", "tanh")))


def _logits(make: Maker, num: int) -> torch.Tensor:
    """[rows, num], no two alike in a row in any dtype: which of equals is chosen is not defined."""
    order = torch.rand(make.rows, num, generator=make.generator).argsort(-1)
    return ((order.float() - num / 2) / 4).to(make.dtype).to(make.device)


def topk_softmax(make: Maker) -> Call:
    num = make.choose(1, 4, 12, 60)
    args = (_logits(make, num), make.choose(1, max(1, num // 3), num), make.choose(True, False))
    return Call(args, dtype=torch.float32)


def route_topk(make: Maker) -> Call:
    groups = make.choose(1, 1, 2, 4)
    num = 4 * groups * make.choose(1, 3)
    kept = make.choose(1, groups)
    bias = None
    if make.choose(True, False):
        bias = torch.randn(num, generator=make.generator).to(make.device)
    return Call((_logits(make, num), bias, make.choose(1, 2, 4)), {
        "scoring": make.choose("softmax", "sigmoid"), "renormalize": make.choose(True, False), "num_groups": groups,
        "topk_groups": kept, "group_score": make.choose("top2", "max"), "scale": make.choose(1.0, 2.5),
    }, dtype=torch.float32)  # fmt: skip


def store_kv(make: Maker) -> Call:
    heads, num_slots = make.choose(1, 3), make.rows + 7
    k, v = make.rows_of(heads, make.size), make.rows_of(heads, make.size + 2)
    caches = make.plain(num_slots, heads, make.size), make.plain(num_slots, heads, make.size + 2)
    return Call((k, v, *caches, _slots(make, num_slots)), changes=(2, 3), results=(2, 3))


def _slots(make: Maker, num_slots: int) -> torch.Tensor:
    """[rows], all different, of either type that attention backends ask for."""
    slots = torch.randperm(num_slots, generator=make.generator)[: make.rows]
    return slots.to(make.choose(torch.int64, torch.int32)).to(make.device)


def embedding(make: Maker) -> Call:
    return Call((make.positions(23), make.plain(23, make.size)))


def _float_logits(make: Maker) -> torch.Tensor:
    """[rows, vocabulary] float32"""
    return torch.randn(make.rows, make.size + 1, generator=make.generator).to(make.device) * 3


def _per_row(make: Maker, *values: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([make.choose(*values) for _ in range(make.rows)], dtype=dtype).to(make.device)


def best_token(make: Maker) -> Call:
    logits = _logits(make, make.choose(1, 12, make.size))
    for row, broken in enumerate([make.choose("", "", "nan", "inf", "-inf") for _ in range(make.rows)]):
        if broken == "-inf":
            logits[row] = float(broken)
        elif broken:
            logits[row, int(torch.randint(logits.shape[1], (), generator=make.generator))] = float(broken)
    return Call((logits,))


def gumbel_argmax(make: Maker) -> Call:
    scaled = _float_logits(make)
    scaled[:, 1::3] = float("-inf")
    ids = torch.randperm(100_000, generator=make.generator)[: scaled.shape[1]].to(make.device)
    spread = spread_ids(ids if make.choose(True, False) else ids.expand(make.rows, -1).contiguous())
    keys = torch.randint(-(1 << 31), 1 << 31, (make.rows, 2), generator=make.generator).to(torch.int32)
    return Call((scaled, spread, keys.to(make.device)), changes=(0,), same=True)


def sampling_threshold(make: Maker) -> Call:
    scaled = _float_logits(make)
    top_k = _per_row(make, 0, 0, 1, 3, scaled.shape[1], dtype=torch.int64)
    top_p = _per_row(make, 1.0, 1.0, 0.1, 0.9, dtype=torch.float64)
    min_p = _per_row(make, 0.0, 0.0, 0.2, dtype=torch.float32)
    known = {
        "max_k": max(top_k.tolist(), default=0), "any_without_k": bool((top_k == 0).any()),
        "any_top_p": bool((top_p < 1).any()),
    }  # fmt: skip
    return Call((scaled, top_k, top_p, min_p), known, dtype=torch.float32, same=True)


def penalize(make: Maker) -> Call:
    logits = _float_logits(make)
    counts = torch.randint(0, 3, logits.shape, generator=make.generator).to(torch.int32).to(make.device)
    in_prompt = (torch.rand(logits.shape, generator=make.generator) < 0.3).to(make.device)
    factors = [_per_row(make, 0.0, 1.0, 1.7, dtype=torch.float32) for _ in range(2)]
    repetition = _per_row(make, 1.0, 0.5, 1.3, dtype=torch.float32)
    return Call((logits, counts, in_prompt, repetition, *factors), changes=(0,), dtype=torch.float32)


def mask_tokens(make: Maker) -> Call:
    logits = _float_logits(make)
    num_words = -(-logits.shape[1] // 32) + make.choose(0, 1)
    shape = (logits.shape[0], num_words)
    words = torch.randint(-(2**31), 2**31, shape, generator=make.generator, dtype=torch.int64).to(torch.int32)
    return Call((logits, words.to(make.device)), changes=(0,), dtype=torch.float32, same=True)


def token_logprobs(make: Maker) -> Call:
    logits = _float_logits(make) if make.dtype is torch.float32 else _logits(make, make.choose(1, 12, 60))
    tokens = make.positions(logits.shape[1])
    return Call((logits, tokens, make.choose(0, 1, 5, 200)), dtype=torch.float32)


def quantize_fp8_tensor(make: Maker) -> Call:
    scale = make.choose(None, torch.full((1,), 0.01, device=make.device))
    return Call((make.rows_of(make.size), scale), dtype=torch.float32, same=True)


def quantize_fp8_token(make: Maker) -> Call:
    x = make.rows_of(make.size)
    x[1::4] = 0
    return Call((x,), dtype=torch.float32, same=True)


def quantize_fp8_group(make: Maker) -> Call:
    return Call((make.rows_of(make.size), make.choose(16, 128, 48)), dtype=torch.float32, same=True)


CASES: Mapping[str, Callable[[Maker], Call]] = {
    case.__name__: case
    for case in (
        linear, pack_linear_weight, fused_linear, rms_norm, add_rms_norm, qk_norm, rope, qk_norm_rope,
        qk_norm_rope_store, silu_and_mul, gelu_and_mul, topk_softmax, route_topk, store_kv, embedding, best_token,
        gumbel_argmax, sampling_threshold, penalize, mask_tokens, token_logprobs, quantize_fp8_tensor,
        quantize_fp8_token, quantize_fp8_group,
    )
}  # fmt: skip

# Calls of these are the same whatever the type.
FLOAT32 = ("gumbel_argmax", "sampling_threshold", "penalize", "mask_tokens")


def canonical(name: str, call: Call, results: Results) -> Results:
    """Results in a form that is unique: choices of experts by their number, with the order where it is defined; the
    token of a row that is usable; quantized numbers as what they stand for."""
    if name == "best_token":
        best, tokens = results
        usable = best.isfinite()
        return best.masked_fill(~usable, 0), usable, tokens.masked_fill(~usable, 0)
    if name.startswith("quantize_fp8"):
        q, scale = results
        assert q.dtype == torch.float8_e4m3fn, f"quantized numbers are {q.dtype}"
        wide = scale
        if name == "quantize_fp8_group":
            wide = scale.repeat_interleave(call.args[1], 1)[:, : q.shape[1]]
        return q.float() * wide, scale
    if name not in ("topk_softmax", "route_topk"):
        return results
    weights, ids = results
    assert ids.dtype == torch.int64, f"ids are {ids.dtype}"
    assert weights.dtype == torch.float32, f"weights are {weights.dtype}"
    if name == "topk_softmax":
        return weights, ids
    order = ids.argsort(-1)
    return weights.gather(1, order), ids.gather(1, order)
