"""Experts in 8-bit floating point (e4m3): which layouts there are, and the same computed in plain PyTorch.

Weights `gate_up` [E, 2I, H] and `down` [E, H, I] are torch.float8_e4m3fn; weight = stored * scale. Scales are float32:

| format       | scales["gate_up"]               | scales["down"]                | activations, one scale for |
|--------------|---------------------------------|-------------------------------|----------------------------|
| fp8_tensor   | [E, 2]: gate, up                | [E]                           | a token                    |
| fp8_channel  | [E, 2I]                         | [E, H]                        | a token                    |
| fp8_block128 | [E, 2 ceil(I/128), ceil(H/128)] | [E, ceil(H/128), ceil(I/128)] | 128 values of a token      |

Gate and up begin a block of their own each, gate's blocks first. A tensor-parallel share that would begin inside a
block has rows of zeros (of gate and up; columns of down) before it; whoever makes the weights puts them there.

Activations are quantized before each of the two products of many tokens. A few tokens (block_m 1) are multiplied as
they are: there only the weights' bytes cost time.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch.nn import functional as F

from core.interfaces.errors import ConfigError
from core.interfaces.moe import PLAIN, ExpertWeights
from core.layers.moe import gated, loop_experts
from core.ops.quantize import FP8_MAX, MIN_SCALE, quantize_fp8_group

TENSOR, CHANNEL, BLOCK = "fp8_tensor", "fp8_channel", "fp8_block128"
# Format -> FORMAT of the kernels.
CODES: Mapping[str, int] = MappingProxyType({PLAIN: 0, TENSOR: 1, CHANNEL: 2, BLOCK: 3})
GROUP = 128  # rows and columns of a block


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
    """Raises ConfigError unless format, dtypes, shapes and scales are as said above."""
    if weights.format not in CODES:
        raise _wrong(weights, f"the format is none of {', '.join(CODES)}")
    experts, hidden, inter = weights.down.shape
    problems = []
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
            problems.append(
                f"scales[{name!r}] is {scale.dtype} {list(scale.shape)}, not contiguous float32 {list(shape)}"
            )
    if problems:
        raise _wrong(weights, "; ".join(problems))


def _wrong(weights: ExpertWeights, why: str) -> ConfigError:
    return ConfigError(
        f"TritonMoe cannot compute these experts of format {weights.format!r}: {why}",
        field="model.quantization",
        value=weights.format,
        hint="the layouts are in docs/plugins/moe.md; another --moe-backend or --quantization may do",
    )


# Plain PyTorch


def pack(plain: ExpertWeights, format_: str) -> ExpertWeights:
    """Plain weights in a format of this module: each scale is the largest amount it covers / 448."""
    halves = [_pack(half, format_) for half in plain.gate_up.chunk(2, dim=1)]
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
        padded = F.pad(amount, (0, -columns % GROUP, 0, -rows % GROUP))
        scale = padded.unflatten(2, (-1, GROUP)).unflatten(1, (-1, GROUP)).amax((2, 4))
    scale = (scale / FP8_MAX).clamp_min(MIN_SCALE)
    stored = weight.float() / _spread(scale, weight.shape)
    return stored.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale.contiguous()


def _spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A scale for every element of a weight [E, N, K], or what expands to that."""
    if scale.dim() < 3:
        return scale.view(*scale.shape, *[1] * (3 - scale.dim()))
    rows = scale.repeat_interleave(GROUP, dim=1)[:, : shape[1]]
    return rows.repeat_interleave(GROUP, dim=2)[:, :, : shape[2]]


def unpack(weights: ExpertWeights, dtype: torch.dtype = torch.float64) -> ExpertWeights:
    """The plain weights that a format stands for."""
    scale = weights.scales["gate_up"]
    parts = scale.unbind(1) if weights.format == TENSOR else scale.chunk(2, dim=1)
    halves = weights.gate_up.to(dtype).chunk(2, dim=1)
    gate_up = [half * _spread(part, half.shape).to(dtype) for half, part in zip(halves, parts, strict=True)]
    down = weights.down.to(dtype) * _spread(weights.scales["down"], weights.down.shape).to(dtype)
    return ExpertWeights(torch.cat(gate_up, dim=1), down, PLAIN, {}, weights.activation)


def reference(x: torch.Tensor, weights: ExpertWeights, ids: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """As `MoeRunner.run`, float32: what many tokens get, activations rounded to 8 bits before each product."""
    plain = unpack(weights, torch.float32)
    group = GROUP if weights.format == BLOCK else 0

    def rounded(rows: torch.Tensor) -> torch.Tensor:
        size = group or rows.shape[1]
        stored, scales = quantize_fp8_group(rows, size)
        return stored.float() * scales.repeat_interleave(size, dim=1)[:, : rows.shape[1]]

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        hidden = gated(F.linear(rounded(rows), plain.gate_up[expert]), weights.activation)
        return F.linear(rounded(hidden), plain.down[expert])

    return loop_experts(x.float(), ids, factors, weights.gate_up.shape[0], run)
