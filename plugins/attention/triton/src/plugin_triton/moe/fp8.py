"""Experts in 8-bit floating point (e4m3): layouts, activations quantized on the way, and the same in plain PyTorch.

Weights `gate_up` [E, 2I, H] and `down` [E, H, I] are torch.float8_e4m3fn; weight = stored * scale. Scales are float32:

| format       | scales["gate_up"]                       | scales["down"]                   | activations, one scale for |
|--------------|-----------------------------------------|----------------------------------|----------------------------|
| fp8_tensor   | [E, 2]: gate, up                        | [E]                              | a token                    |
| fp8_channel  | [E, 2I]                                 | [E, H]                           | a token                    |
| fp8_block128 | [E, 2 ceil(I/128), ceil(H/128)]: blocks | [E, ceil(H/128), ceil(I/128)]    | 128 values of a token      |
|              | of gate first                           |                                  |                            |

Gate and up begin a block of their own each. A tensor-parallel share that would begin inside a block is padded with zero
rows (of gate and up; columns of down) by whoever makes the weights.

Activations are quantized before each of both products of a large batch. A few tokens are multiplied as they are, since
there only the weights' bytes cost time.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
import triton
import triton.language as tl

from core.interfaces.errors import ConfigError
from core.interfaces.moe import PLAIN, ExpertWeights
from plugin_triton.moe import launch

TENSOR, CHANNEL, BLOCK = "fp8_tensor", "fp8_channel", "fp8_block128"
# Format -> FORMAT of the kernels.
CODES: Mapping[str, int] = MappingProxyType({PLAIN: 0, TENSOR: 1, CHANNEL: 2, BLOCK: 3})
GROUP = 128
LARGEST = 448.0  # of e4m3
SMALLEST = 1e-10  # amount of a row of zeros


def scale_shapes(format_: str, experts: int, hidden: int, inter: int) -> dict[str, tuple[int, ...]]:
    """Shapes of `ExpertWeights.scales` by name; none for "plain"."""
    wide, tall = -(-hidden // GROUP), -(-inter // GROUP)
    known: dict[str, dict[str, tuple[int, ...]]] = {
        PLAIN: {},
        TENSOR: {"gate_up": (experts, 2), "down": (experts,)},
        CHANNEL: {"gate_up": (experts, 2 * inter), "down": (experts, hidden)},
        BLOCK: {"gate_up": (experts, 2 * tall, wide), "down": (experts, wide, tall)},
    }
    return known[format_]


def check(weights: ExpertWeights) -> None:
    """Raises ConfigError unless dtypes, shapes and scales are as the format says."""
    experts, hidden, inter = weights.down.shape
    problems = []
    if weights.format not in CODES:
        raise _wrong(weights, f"the format is none of {', '.join(CODES)}")
    if tuple(weights.gate_up.shape) != (experts, 2 * inter, hidden):
        problems.append(f"gate_up is {list(weights.gate_up.shape)}, not {[experts, 2 * inter, hidden]}")
    for name, tensor in (("gate_up", weights.gate_up), ("down", weights.down)):
        if (tensor.dtype == torch.float8_e4m3fn) != (weights.format != PLAIN):
            problems.append(f"{name} is {tensor.dtype}")
        if not tensor.is_contiguous():
            problems.append(f"{name} is not contiguous")
    for name, shape in scale_shapes(weights.format, experts, hidden, inter).items():
        scale = weights.scales.get(name)
        if scale is None:
            problems.append(f"scales has no {name!r}")
        elif tuple(scale.shape) != shape or scale.dtype != torch.float32 or not scale.is_contiguous():
            problems.append(f"scales[{name!r}] is {scale.dtype} {list(scale.shape)}, not float32 {list(shape)}")
    if problems:
        raise _wrong(weights, "; ".join(problems))


def _wrong(weights: ExpertWeights, why: str) -> ConfigError:
    return ConfigError(
        f"experts of format {weights.format!r} cannot be computed by TritonMoe: {why}",
        field="model.quantization",
        value=weights.format,
        hint="the layouts are in docs/plugins/moe.md; another --moe-backend or --quantization may do",
    )


def quantize(x: torch.Tensor, group: int, overlap: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, H], T > 0 -> (e4m3 [T, H], scales [T, ceil(H / group)] float32)."""
    tokens, width = x.shape
    groups = triton.cdiv(width, group)
    out = torch.empty(tokens, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(tokens, groups, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(min(group, width))
    together = max(1, min(triton.next_power_of_2(groups), 2048 // block))
    _quantize[(tokens, triton.cdiv(groups, together))](
        x, x.stride(0), out, scales, width, groups, GROUP_SIZE=min(group, width), BLOCK=block, GROUPS=together,
        LARGEST=LARGEST, SMALLEST=SMALLEST, ROUND=launch.INTERPRETED, PDL=overlap, num_warps=4 if block * together > 512 else 1,
        **launch.options(overlap),
    )  # fmt: skip
    return out, scales


@triton.jit
def _quantize(
    x, stride_x, out, scales, width, num_groups, GROUP_SIZE: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr,
    LARGEST: tl.constexpr, SMALLEST: tl.constexpr, ROUND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Some groups of one token."""
    launch.begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    place = tl.arange(0, BLOCK)
    column = group[:, None] * GROUP_SIZE + place[None, :]
    inside = (column < width) & (place < GROUP_SIZE)[None, :]
    value = tl.load(x + token * stride_x + column, mask=inside, other=0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=1), SMALLEST) / LARGEST
    value = tl.clamp(value / scale[:, None], -LARGEST, LARGEST)
    if ROUND:
        value = _rounded(value)
    tl.store(out + token * width + column, value.to(out.dtype.element_ty), mask=inside)
    tl.store(scales + token * num_groups + group, scale, mask=group < num_groups)


@triton.jit
def _rounded(value):
    """To the nearest value of e4m3, ties to even. Hardware does so when it converts; Triton's interpreter loses the
    carry into the exponent. e4m3 keeps 3 bits behind the point, and steps of 2^-9 below 2^-6."""
    exponent = (value.to(tl.int32, bitcast=True) >> 23) & 255
    step = ((tl.maximum(exponent, 121) - 3) << 23).to(tl.float32, bitcast=True)
    magic = 12582912.0  # 1.5 * 2^23: numbers there have no bits behind the point
    return (value / step + magic - magic) * step


# Plain PyTorch


def reference_quantize(x: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `quantize` computes."""
    width = x.shape[-1]
    padded = torch.nn.functional.pad(x.float(), (0, -width % group)).unflatten(-1, (-1, group))
    scales = padded.abs().amax(-1).clamp_min(SMALLEST) / LARGEST
    stored = (padded / scales.unsqueeze(-1)).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return stored.flatten(-2)[..., :width], scales


def pack(plain: ExpertWeights, format_: str) -> ExpertWeights:
    """Plain weights in a format of this module: each scale is the largest amount it covers / 448."""
    experts, hidden, inter = plain.down.shape
    halves = [_pack(half, format_) for half in plain.gate_up.split(inter, dim=1)]
    down, down_scale = _pack(plain.down, format_)
    join = torch.stack if format_ == TENSOR else torch.cat
    scales = {"gate_up": join([scale for _, scale in halves], dim=1).contiguous(), "down": down_scale}
    gate_up = torch.cat([half.view(torch.uint8) for half, _ in halves], dim=1).view(torch.float8_e4m3fn)
    return ExpertWeights(gate_up, down, format_, scales, plain.activation)


def _pack(weight: torch.Tensor, format_: str) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [E, N, K] -> (e4m3 [E, N, K], its scales)."""
    amount = weight.float().abs()
    if format_ == TENSOR:
        scale = amount.amax((1, 2))
    elif format_ == CHANNEL:
        scale = amount.amax(2)
    else:
        rows, columns = weight.shape[1:]
        padded = torch.nn.functional.pad(amount, (0, -columns % GROUP, 0, -rows % GROUP))
        scale = padded.unflatten(2, (-1, GROUP)).unflatten(1, (-1, GROUP)).amax((2, 4))
    scale = scale.clamp_min(SMALLEST) / LARGEST
    stored = weight.float() / _spread(scale, weight.shape)
    return stored.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale.contiguous()


def _spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A scale for every element of a weight [E, N, K]."""
    while scale.dim() < 2:
        scale = scale.unsqueeze(-1)
    if scale.dim() == 2:
        return scale.unsqueeze(-1)
    rows = scale.repeat_interleave(GROUP, dim=1)[:, : shape[1]]
    return rows.repeat_interleave(GROUP, dim=2)[:, :, : shape[2]]


def unpack(weights: ExpertWeights, dtype: torch.dtype = torch.float64) -> ExpertWeights:
    """The plain weights that a format stands for."""
    inter = weights.down.shape[2]
    scale = weights.scales["gate_up"]
    halves = weights.gate_up.to(dtype).split(inter, dim=1)
    parts = scale.unbind(1) if weights.format == TENSOR else scale.chunk(2, dim=1)
    gate_up = [half * _spread(part, half.shape).to(dtype) for half, part in zip(halves, parts, strict=True)]
    down = weights.down.to(dtype) * _spread(weights.scales["down"], weights.down.shape).to(dtype)
    return ExpertWeights(torch.cat(gate_up, dim=1), down, PLAIN, {}, weights.activation)
