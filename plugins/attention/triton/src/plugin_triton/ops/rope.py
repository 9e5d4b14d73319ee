"""Rotary embedding: of queries and keys, with their head norms before it and the KV store behind it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from core.ops import reference
from core.ops.bind import bound_by
from plugin_triton.dependent import dependent, release, wait
from plugin_triton.launch import FLOATS, Launch, empty_as

# ruff: noqa: N803
_HEADS = 8  # of one program, at most


@triton.jit
def _turn(  # type: ignore[no-untyped-def]
    x, y, weight, starts, out, heads_ok, cos, sin, eps,
    DIM: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr, INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr, COPY: tl.constexpr,
):  # fmt: skip
    """Heads that begin at `starts` of x: norm, rotation of the first 2 * HALF dimensions, to `out` of y. The rest of a
    head is written if it was normed or COPY."""
    pair = tl.arange(0, BLOCK)
    one = 2 * pair if INTERLEAVED else pair
    two = 2 * pair + 1 if INTERLEAVED else HALF + pair
    ok = heads_ok[:, None] & (pair < HALF)[None, :]
    first = tl.load(x + starts[:, None] + one[None, :], mask=ok, other=0.0).to(tl.float32)
    second = tl.load(x + starts[:, None] + two[None, :], mask=ok, other=0.0).to(tl.float32)
    if REST:
        behind = 2 * HALF + tl.arange(0, REST)
        rest_ok = heads_ok[:, None] & (behind < DIM)[None, :]
        rest = tl.load(x + starts[:, None] + behind[None, :], mask=rest_ok, other=0.0).to(tl.float32)
    if NORM:
        square = tl.sum(first * first + second * second, axis=1)
        if REST:
            square += tl.sum(rest * rest, axis=1)
        scale = tl.rsqrt(square / DIM + eps)[:, None]
        pair_ok = pair < HALF
        first *= scale * tl.load(weight + one, mask=pair_ok, other=0.0).to(tl.float32)[None, :]
        second *= scale * tl.load(weight + two, mask=pair_ok, other=0.0).to(tl.float32)[None, :]
        if REST:
            rest *= scale * tl.load(weight + behind, mask=behind < DIM, other=0.0).to(tl.float32)[None, :]
    kind = y.dtype.element_ty
    tl.store(y + out[:, None] + one[None, :], (first * cos - second * sin).to(kind), mask=ok)
    tl.store(y + out[:, None] + two[None, :], (second * cos + first * sin).to(kind), mask=ok)
    if REST and (NORM or COPY):
        tl.store(y + out[:, None] + behind[None, :], rest.to(kind), mask=rest_ok)


@triton.jit
def rope_kernel(  # type: ignore[no-untyped-def]
    q, k, v, q_out, k_out, v_out, q_weight, k_weight, cos_sin, positions, slots, eps,
    NUM_Q: tl.constexpr, NUM_K: tl.constexpr, NUM_V: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    Q_HEAD: tl.constexpr, K_HEAD: tl.constexpr, V_HEAD: tl.constexpr,
    Q_OUT_STRIDE: tl.constexpr, K_OUT_STRIDE: tl.constexpr, V_OUT_STRIDE: tl.constexpr, TABLE_STRIDE: tl.constexpr,
    HALF: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr, V_BLOCK: tl.constexpr, HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr, COPY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, groups of HEADS query, then key, then value heads). Tokens and heads of the inputs lie *_STRIDE and
    *_HEAD apart, those of the outputs *_OUT_STRIDE and DIM. Where `slots` is given, keys and values go to its rows of
    k_out and v_out."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q_groups: tl.constexpr = (NUM_Q + HEADS - 1) // HEADS
    k_groups: tl.constexpr = (NUM_K + HEADS - 1) // HEADS
    heads = tl.arange(0, HEADS)
    pair = tl.arange(0, BLOCK)
    release(PDL)
    wait(PDL)
    angle = cos_sin + tl.load(positions + token).to(tl.int64) * TABLE_STRIDE + pair
    cos = tl.load(angle, mask=pair < HALF, other=0.0)[None, :]
    sin = tl.load(angle + HALF, mask=pair < HALF, other=0.0)[None, :]
    row = token
    if slots is not None:
        row = tl.load(slots + token).to(tl.int64)
    if group < q_groups:
        heads += group * HEADS
        _turn(q, q_out, q_weight, token * Q_STRIDE + heads * Q_HEAD, token * Q_OUT_STRIDE + heads * DIM, heads < NUM_Q,
              cos, sin, eps, DIM, HALF, BLOCK, REST, INTERLEAVED, Q_NORM, COPY)  # fmt: skip
    elif group < q_groups + k_groups:
        heads += (group - q_groups) * HEADS
        _turn(k, k_out, k_weight, token * K_STRIDE + heads * K_HEAD, row * K_OUT_STRIDE + heads * DIM, heads < NUM_K,
              cos, sin, eps, DIM, HALF, BLOCK, REST, INTERLEAVED, K_NORM, COPY or slots is not None)  # fmt: skip
    elif NUM_V > 0:
        heads += (group - q_groups - k_groups) * HEADS
        cols = tl.arange(0, V_BLOCK)
        ok = (heads < NUM_V)[:, None] & (cols < V_DIM)[None, :]
        value = tl.load(v + token * V_STRIDE + heads[:, None] * V_HEAD + cols[None, :], mask=ok)
        at = row * V_OUT_STRIDE + heads[:, None] * V_DIM + cols[None, :]
        tl.store(v_out + at, value.to(v_out.dtype.element_ty), mask=ok)


def rope(
    q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor, *, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """New (q, k), turned."""
    if not (_turns(q, cos_sin, positions) and _turns(k, cos_sin, positions) and q.shape[2] == k.shape[2]):
        return reference.rope(q, k, cos_sin, positions, interleaved=interleaved)
    q_out, k_out = empty_as(q), empty_as(k)
    launch, groups = _plan_for(
        q, k, None, q_out, k_out, None, None, None, cos_sin, positions, None, interleaved
    )  # fmt: skip
    if q.shape[0]:
        launch.start(q.get_device(), q.shape[0], groups, 1, q, k, None, q_out, k_out, None, None, None, cos_sin,
                     positions, None, 0.0)  # fmt: skip
    return q_out, k_out


class BoundRope:
    """`qk_norm_rope` and `qk_norm_rope_store` with what one layer always gives."""

    def __init__(
        self,
        heads: tuple[int, int, int],
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
        eps: float,
        cos_sin: torch.Tensor,
        interleaved: bool = False,
    ) -> None:
        self.heads, self.q_weight, self.k_weight, self.eps, self.cos_sin = heads, q_weight, k_weight, eps, cos_sin
        self.interleaved = interleaved
        # By what may change between calls; None where the kernel does not take it.
        self._plans: dict[tuple[object, ...], tuple[Launch, int, int] | None] = {}

    def __call__(self, qkv: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """In place: the results are views of qkv."""
        shape = qkv.shape
        key = qkv.dtype, shape[1:], qkv.stride(), positions.dtype, positions.is_contiguous()
        if key not in self._plans:
            self._plans[key] = self._plan(qkv, positions, None, None, None)
        plan = self._plans[key]
        if plan is None:
            return reference.qk_norm_rope(
                qkv, self.heads, self.q_weight, self.k_weight, self.eps, self.cos_sin, positions,
                interleaved=self.interleaved,
            )  # fmt: skip
        q, k, v = qkv.split_with_sizes(self.heads, 1)
        launch, groups, number = plan
        if shape[0]:
            launch.start(number, shape[0], groups, 1, q, k, None, q, k, None, self.q_weight, self.k_weight,
                         self.cos_sin, positions, None, self.eps)  # fmt: skip
        return q, k, v

    def store(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """The queries, in place; keys and values go to the caches."""
        shape = qkv.shape
        key = (
            qkv.dtype, shape[1:], qkv.stride(), positions.dtype, positions.is_contiguous(), k_cache.dtype,
            k_cache.stride(), v_cache.dtype, v_cache.stride(), slots.dtype,
        )  # fmt: skip
        if key not in self._plans:
            self._plans[key] = self._plan(qkv, positions, k_cache, v_cache, slots)
        plan = self._plans[key]
        if plan is None:
            return reference.qk_norm_rope_store(
                qkv, self.heads, self.q_weight, self.k_weight, self.eps, self.cos_sin, positions, k_cache, v_cache,
                slots, interleaved=self.interleaved,
            )  # fmt: skip
        q, k, v = qkv.split_with_sizes(self.heads, 1)
        launch, groups, number = plan
        if shape[0]:
            launch.start(number, shape[0], groups, 1, q, k, v, q, k_cache, v_cache, self.q_weight, self.k_weight,
                         self.cos_sin, positions, slots, self.eps)  # fmt: skip
        return q

    def _plan(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        k_cache: torch.Tensor | None,
        v_cache: torch.Tensor | None,
        slots: torch.Tensor | None,
    ) -> tuple[Launch, int, int] | None:
        """(the launch, groups of heads, the device's number)"""
        if not _takes(qkv, self.q_weight, self.k_weight, self.cos_sin, positions):
            return None
        q, k, v = qkv.split_with_sizes(self.heads, 1)
        if k_cache is None or v_cache is None:
            found = _plan_for(q, k, None, q, k, None, self.q_weight, self.k_weight, self.cos_sin, positions, None,
                              self.interleaved)  # fmt: skip
        elif not (_rows(k_cache) and _rows(v_cache)):
            return None
        else:
            found = _plan_for(q, k, v, q, k_cache, v_cache, self.q_weight, self.k_weight, self.cos_sin, positions,
                              slots, self.interleaved)  # fmt: skip
        return (*found, qkv.get_device())


def _bind_store(**constants: Any) -> Callable[..., torch.Tensor]:
    return BoundRope(**constants).store


@bound_by(BoundRope)
def qk_norm_rope(
    qkv: torch.Tensor,
    heads: tuple[int, int, int],
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    *,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In place: the results are views of qkv."""
    return BoundRope(heads, q_weight, k_weight, eps, cos_sin, interleaved)(qkv, positions)


@bound_by(_bind_store)
def qk_norm_rope_store(
    qkv: torch.Tensor,
    heads: tuple[int, int, int],
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    interleaved: bool = False,
) -> torch.Tensor:
    """The queries, in place; keys and values go to the caches."""
    bound = BoundRope(heads, q_weight, k_weight, eps, cos_sin, interleaved)
    return bound.store(qkv, positions, k_cache, v_cache, slots)


def _turns(x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> bool:
    return (
        x.dtype in FLOATS
        and x.stride(2) == 1
        and cos_sin.dtype is torch.float32
        and cos_sin.stride(1) == 1
        and positions.is_contiguous()
    )


def _takes(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
) -> bool:
    return (
        _turns(qkv, cos_sin, positions)
        and qkv.stride(1) == qkv.shape[2]  # heads lie beside one another, where they are written too
        and (q_weight is None or q_weight.dtype is qkv.dtype)
        and (k_weight is None or k_weight.dtype is qkv.dtype)
    )


def _rows(cache: torch.Tensor) -> bool:
    """Whether heads of a cache [S, H, D] lie beside one another."""
    return cache.stride(2) == 1 and cache.stride(1) == cache.shape[2]


def _plan_for(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor | None,
    q_out: torch.Tensor,
    k_out: torch.Tensor,
    v_out: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor | None,
    interleaved: bool,
) -> tuple[Launch, int]:
    types = (
        q.dtype, k.dtype, k_out.dtype, positions.dtype, None if v_out is None else v_out.dtype,
        None if slots is None else slots.dtype,
    )  # fmt: skip
    heads = (q.shape[1], k.shape[1], 0 if v is None else v.shape[1], q.shape[2])
    strides = (
        q.stride(), k.stride(), None if v is None else v.stride(), q_out.stride(), k_out.stride(),
        None if v_out is None else v_out.stride(), cos_sin.stride(),
    )  # fmt: skip
    flags = (interleaved, q_weight is not None, k_weight is not None, q_out is not q)
    return _plan(q.device, types, heads, strides, cos_sin.shape[1] // 2, flags)


@functools.cache
def _plan(
    device: torch.device,
    types: tuple[torch.dtype | None, ...],
    heads: tuple[int, int, int, int],
    strides: tuple[tuple[int, ...] | None, ...],
    half: int,
    flags: tuple[bool, bool, bool, bool],
) -> tuple[Launch, int]:
    """(the launch, groups of heads for each token)"""
    num_q, num_k, num_v, dim = heads
    rest = dim - 2 * half
    q, k, v, q_out, k_out, v_out, table = (stride or (0, 0, 0) for stride in strides)
    group = min(_HEADS, triton.next_power_of_2(max(num_k, 1)))
    pdl = dependent(device)
    constants = (
        num_q, num_k, num_v, dim, dim, q[0], k[0], v[0], q[1], k[1], v[1], q_out[0], k_out[0], v_out[0], table[0],
        half, triton.next_power_of_2(half), triton.next_power_of_2(rest) if rest else 0,
        triton.next_power_of_2(dim), group, *flags, pdl,
    )  # fmt: skip
    warps = max(1, min(4, group * dim // 512))
    groups = sum(-(-num // group) for num in (num_q, num_k, num_v))
    return Launch(rope_kernel, constants, num_warps=warps, pdl=pdl), groups
