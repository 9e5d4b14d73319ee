"""Rotary position embedding: its frequencies and its cos/sin table.

A rotary embedding (Su et al. 2021, arXiv:2104.09864) turns pair j of a head by angle position · f_j, with
f_j = theta^(-2j/R) for a rotary dimension R. The scalings below change f_j, and the table holds the result:
row p is [cos(p·f_0..), sin(p·f_0..)], float32 [positions, R].
"""

from __future__ import annotations

import math
from functools import partial

import torch

from core.interfaces.build import BuildContext
from core.layers.rope_config import RopeSpec


def inverse_frequencies(spec: RopeSpec) -> torch.Tensor:
    """f_j, float32 [rotary_dim / 2], for positions within max_position."""
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32) / spec.rotary_dim
    base = 1.0 / (spec.theta**exponents)
    if spec.kind == "linear":
        # Positions squeezed by `factor` (Chen et al. 2023, arXiv:2306.15595).
        return base / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, base)
    if spec.kind == "yarn":
        return _yarn(spec, base)
    return base


def _llama3(spec: RopeSpec, base: torch.Tensor) -> torch.Tensor:
    """Llama 3.1 (Grattafiori et al. 2024, arXiv:2407.21783, and its published code): wavelengths shorter than
    original/high_freq_factor stay, those longer than original/low_freq_factor are divided by `factor`, and between
    them a linear blend in original/wavelength."""
    turns = spec.original_max_position * base / (2 * math.pi)  # original length / wavelength
    blend = (turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * base / spec.factor + blend * base


def _yarn(spec: RopeSpec, base: torch.Tensor) -> torch.Tensor:
    """YaRN (Peng et al. 2023, arXiv:2309.00071), NTK-by-parts: dims that turn more than beta_fast times over the
    original length stay, those below beta_slow turns are divided by `factor`, with a linear ramp over dims between."""

    def dim_of(turns: float) -> float:
        ratio = spec.original_max_position / (turns * 2 * math.pi)
        return spec.rotary_dim * math.log(ratio) / (2 * math.log(spec.theta))

    low, high = dim_of(spec.beta_fast), dim_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    ramp = ((torch.arange(spec.rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return base / spec.factor * ramp + base * (1 - ramp)


def attention_factor(spec: RopeSpec) -> float:
    """Factor on cos and sin. YaRN (section 3.4) sharpens attention by 0.1·ln(factor) + 1; `mscale` variants divide
    two such terms."""
    if spec.kind != "yarn":
        return 1.0
    if spec.attention_factor is not None:
        return spec.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(spec.factor) + 1.0 if spec.factor > 1 else 1.0

    if spec.mscale and spec.mscale_all_dim:
        return mscale(spec.mscale) / mscale(spec.mscale_all_dim)
    return mscale(1.0)


def cos_sin_table(spec: RopeSpec, num_positions: int) -> torch.Tensor:
    """float32 [num_positions, rotary_dim], cosines first.

    dynamic (NTK-aware, theta grows with the length): a token at position p >= max_position is turned with the
    frequencies of a sequence of p + 1 tokens. That is what a token-by-token generation does, it depends on nothing
    but the position, and so chunked prefill, batching and shared prefixes cannot change a result. A prompt longer
    than max_position differs here from implementations that turn the whole prompt by its own length.
    """
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = positions[:, None] * inverse_frequencies(spec)
    if spec.kind == "dynamic" and num_positions > spec.max_position:
        lengths = positions[spec.max_position :, None].double() + 1
        stretch = spec.factor * lengths / spec.max_position - (spec.factor - 1)
        theta = spec.theta * stretch ** (spec.rotary_dim / (spec.rotary_dim - 2))
        exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float64) / spec.rotary_dim
        beyond = 1.0 / theta**exponents
        angles[spec.max_position :] = positions[spec.max_position :, None] * beyond.float()
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * attention_factor(spec)


class Rope:
    """The table on the device, shared by the layers that use it. One per distinct RopeSpec of a model.

    interleaved: pairs are neighbours (2j, 2j + 1) instead of (j, j + rotary_dim / 2).
    """

    def __init__(self, spec: RopeSpec, ctx: BuildContext, *, interleaved: bool = False) -> None:
        self.spec = spec
        self.interleaved = interleaved
        self.table = cos_sin_table(spec, ctx.context_length).to(ctx.device)
        op = ctx.ops["rope"]
        self.op = partial(op, interleaved=True) if interleaved else op

    def __call__(self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """q [T, H, D], k [T, KV, D], positions [T] int64 -> the same, the first rotary_dim dims turned."""
        return self.op(q, k, self.table, positions)
