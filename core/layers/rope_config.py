"""Reading the rotary embedding's part of config.json. Imports no torch, so that a model plugin's `spec` need not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.interfaces.errors import CheckpointError

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """One rotary embedding.

    rotary_dim: leading dims of a head that are turned. kind: one of default, linear, dynamic, yarn, llama3.
    max_position: the configuration's max_position_embeddings. original_max_position: length of pre-training.
    low_freq_factor, high_freq_factor: llama3. beta_fast, beta_slow, mscale, mscale_all_dim, attention_factor,
    truncate: yarn.
    """

    rotary_dim: int
    theta: float
    max_position: int
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    truncate: bool = True

    @property
    def context_length(self) -> int:
        """Positions that the configuration is meant for. linear and dynamic state the length before scaling in
        max_position_embeddings; yarn may state either; llama3 states the length after it."""
        if self.kind in ("linear", "dynamic"):
            return int(self.max_position * self.factor)
        if self.kind == "yarn":
            return max(self.max_position, int(self.original_max_position * self.factor))
        return self.max_position


def latent_scale(rope: RopeSpec, head_dim: int) -> float:
    """Factor on q·k of latent attention (DeepSeek-V2, section 2.1.3 and its published code): head_dim^-0.5, and with
    yarn and an `mscale_all_dim` twice its sharpening, which the table of cosines then leaves out."""
    scale = float(head_dim**-0.5)
    if rope.kind == "yarn" and rope.mscale_all_dim and rope.factor > 1:
        scale *= (0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0) ** 2
    return scale


def rope_spec(
    config: Mapping[str, Any], head_dim: int, default_theta: float = 10000.0, default_partial: float = 1.0
) -> RopeSpec:
    """Read config.json. Transformers 4: `rope_theta`, `partial_rotary_factor` and `rope_scaling` with `type` or
    `rope_type`; transformers 5: all of it in `rope_parameters`. Raises CheckpointError naming the field.
    default_partial: share of a head that is turned where `partial_rotary_factor` is absent."""
    where = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(where) or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"config.json: {where} must be an object, not {given!r}")
    if any(isinstance(value, Mapping) for value in given.values()):
        raise CheckpointError(
            f"config.json: {where} has one entry per layer type, which this architecture does not use"
        )
    kind = str(given.get("rope_type") or given.get("type") or "default")
    if kind not in _KINDS:
        raise CheckpointError(
            f"config.json: {where}.rope_type = {kind!r} is unknown", hint=f"known types: {', '.join(_KINDS)}"
        )

    def number(name: str, default: float | None, outer: bool = False) -> float:
        value = given.get(name)
        if value is None and outer:
            value = config.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"config.json: {where}.{name} must be a number for rope_type {kind!r}, not {value!r}")
        return float(value)

    partial = number("partial_rotary_factor", default_partial, outer=True)
    rotary_dim = int(head_dim * partial)
    if rotary_dim <= 0 or rotary_dim % 2 or rotary_dim > head_dim or (kind == "dynamic" and rotary_dim < 4):
        raise CheckpointError(
            f"config.json: head_dim = {head_dim} with partial_rotary_factor = {partial} turns {rotary_dim} dims of a "
            f"head; an even number of at least {4 if kind == 'dynamic' else 2} is needed"
        )
    theta = number("rope_theta", default_theta, outer=True)
    max_position = int(number("max_position_embeddings", None, outer=True))
    # A value beside rope_scaling is the pre-training length and wins over one inside.
    outer_original = config.get("original_max_position_embeddings")
    original = int(outer_original or number("original_max_position_embeddings", max_position))
    scaled = kind != "default"
    # A yarn configuration may leave the factor open: then it is the ratio of the lengths.
    factor = number("factor", max_position / original if kind == "yarn" else None) if scaled else 1.0
    if factor <= 0 or theta <= 0 or max_position < 1 or original < 1:
        raise CheckpointError(
            f"config.json: rope_theta = {theta}, factor = {factor}, max_position_embeddings = {max_position} and "
            f"original_max_position_embeddings = {original} must be positive"
        )
    fields: dict[str, Any] = {}
    if kind == "llama3":
        fields = {name: number(name, None) for name in ("low_freq_factor", "high_freq_factor")}
        if fields["high_freq_factor"] <= fields["low_freq_factor"]:
            raise CheckpointError(f"config.json: {where}.high_freq_factor must exceed low_freq_factor")
    if kind == "yarn":
        fields = {
            "beta_fast": number("beta_fast", 32.0) or 32.0,
            "beta_slow": number("beta_slow", 1.0) or 1.0,
            "mscale": number("mscale", 0.0),
            "mscale_all_dim": number("mscale_all_dim", 0.0),
            "truncate": bool(given.get("truncate", True)),
        }
        if given.get("attention_factor") is not None:
            fields["attention_factor"] = number("attention_factor", None)
    return RopeSpec(rotary_dim, theta, max_position, kind, factor, original, **fields)
