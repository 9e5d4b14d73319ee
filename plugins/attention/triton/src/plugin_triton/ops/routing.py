"""Choice of experts: softmax or sigmoid scores, correction bias, groups, the k best."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from core.ops import reference
from plugin_triton.dependent import dependent, release, wait
from plugin_triton.launch import FLOATS, Launch

# ruff: noqa: N803
_MAX_EXPERTS = 4096
_LOWEST = tl.constexpr(float("-inf"))


@triton.jit
def _best(choice, numbers, NUM: tl.constexpr):  # type: ignore[no-untyped-def]
    """(largest of [G, S], its number; the lowest number where several are equal). Always a number below NUM, whatever
    the values: experts are looked up by it."""
    largest = tl.max(tl.max(choice, axis=1), axis=0)
    where = tl.where(choice == largest, numbers, NUM)
    return largest, tl.minimum(tl.min(tl.min(where, axis=1), axis=0), NUM - 1)


@triton.jit
def route_kernel(  # type: ignore[no-untyped-def]
    logits, bias, weights, ids,
    STRIDE: tl.constexpr, NUM: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr, TOP: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr, TOP2: tl.constexpr, SCALE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token a program: logits [T, NUM], rows STRIDE apart, bias [NUM] or None -> weights [T, TOP] float32 and ids
    [T, TOP] int64. Experts as a tile [BLOCK_G groups, BLOCK_S of each]."""
    token = tl.program_id(0).to(tl.int64)
    size: tl.constexpr = NUM // GROUPS
    group, member = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_S)
    numbers = group[:, None] * size + member[None, :]
    ok = (group < GROUPS)[:, None] & (member < size)[None, :]
    release(PDL)
    wait(PDL)
    x = tl.load(logits + token * STRIDE + numbers, mask=ok, other=_LOWEST).to(tl.float32)
    if SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-x))
    else:
        scores = tl.exp(x - tl.max(tl.max(x, axis=1), axis=0))
        scores = scores / tl.sum(tl.sum(scores, axis=1), axis=0)
    choice = scores
    if bias is not None:
        choice = scores + tl.load(bias + numbers, mask=ok, other=0.0)
    choice = tl.where(ok & (choice == choice), choice, _LOWEST)
    if GROUPS > 1:
        best = tl.max(choice, axis=1)
        if TOP2:
            first = tl.argmax(choice, axis=1)
            best += tl.max(tl.where(member[None, :] == first[:, None], _LOWEST, choice), axis=1)
        best = tl.where(group < GROUPS, best, _LOWEST)
        kept = tl.zeros([BLOCK_G], tl.int1)
        for _ in tl.static_range(KEPT):
            which = tl.argmax(tl.where(kept, _LOWEST, best), axis=0)
            kept = kept | (group == which)
        choice = tl.where(kept[:, None], choice, _LOWEST)
    places = tl.arange(0, BLOCK_K)
    chosen = tl.zeros([BLOCK_K], tl.int32)
    values = tl.zeros([BLOCK_K], tl.float32)
    for place in tl.static_range(TOP):
        _, number = _best(choice, numbers, NUM)
        mine = numbers == number
        score = tl.sum(tl.sum(tl.where(mine & ok, scores, 0.0), axis=1), axis=0)
        chosen = tl.where(places == place, number, chosen)
        values = tl.where(places == place, score, values)
        choice = tl.where(mine, _LOWEST, choice)
    if RENORMALIZE:
        values = values / (tl.sum(values, axis=0) + 1e-20)
    values *= SCALE
    tl.store(weights + token * TOP + places, values, mask=places < TOP)
    tl.store(ids + token * TOP + places, chosen.to(tl.int64), mask=places < TOP)


def topk_softmax(router_logits: torch.Tensor, k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """router_logits [T, E] -> (weights [T, k] float32, ids [T, k] int64), heaviest first."""
    found = _route(router_logits, None, k, (False, renormalize, 1, 1, True, 1.0))
    return reference.topk_softmax(router_logits, k, renormalize) if found is None else found


def route_topk(
    router_logits: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    *,
    scoring: str,
    renormalize: bool,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_score: str = "top2",
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """router_logits [T, E], bias [E] float32 or None -> (weights [T, k] float32, ids [T, k] int64)."""
    how = (scoring == "sigmoid", renormalize, num_groups, topk_groups, group_score == "top2", scale)
    found = _route(router_logits, bias, k, how)
    if found is not None:
        return found
    return reference.route_topk(
        router_logits, bias, k, scoring=scoring, renormalize=renormalize, num_groups=num_groups,
        topk_groups=topk_groups, group_score=group_score, scale=scale,
    )  # fmt: skip


def _route(
    logits: torch.Tensor, bias: torch.Tensor | None, k: int, how: tuple[bool, bool, int, int, bool, float]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """None if the kernel does not take it."""
    shape = logits.shape
    bias_type = None if bias is None else bias.dtype
    plan = _plan(logits.device, logits.dtype, bias_type, shape[1:], logits.stride(), k, how)
    if plan is None:
        return None
    launch, number = plan
    num_tokens = shape[0]
    weights = torch.empty((num_tokens, k), dtype=torch.float32, device=logits.device)
    ids = torch.empty((num_tokens, k), dtype=torch.int64, device=logits.device)
    if num_tokens:
        launch.start(number, num_tokens, 1, 1, logits, bias, weights, ids)
    return weights, ids


@functools.cache
def _plan(
    device: torch.device,
    dtype: torch.dtype,
    bias_dtype: torch.dtype | None,
    width: tuple[int, ...],
    strides: tuple[int, ...],
    k: int,
    how: tuple[bool, bool, int, int, bool, float],
) -> tuple[Launch, int] | None:
    """(the launch, the device's number)"""
    if len(width) != 1 or strides[1] != 1 or width[0] > _MAX_EXPERTS or dtype not in FLOATS:
        return None
    (num_experts,) = width
    sigmoid, renormalize, groups, kept, top2, scale = how
    block_g, block_s = triton.next_power_of_2(groups), triton.next_power_of_2(num_experts // groups)
    pdl = dependent(device)
    constants = (
        strides[0], num_experts, groups, kept, k, block_g, block_s, triton.next_power_of_2(k), sigmoid, renormalize,
        top2, scale, pdl,
    )  # fmt: skip
    launch = Launch(route_kernel, constants, num_warps=max(1, min(4, block_g * block_s // 512)), pdl=pdl)
    return launch, device.index or 0
