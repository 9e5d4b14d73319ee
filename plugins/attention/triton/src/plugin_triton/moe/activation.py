"""The gate's activation inside kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from core.layers.config import ACTIVATIONS

# ruff: noqa: N803

# (operation, approximation) of `ACTIVATIONS` -> ACT of the kernels.
_CODES: dict[tuple[str, str | None], int] = {
    ("silu_and_mul", None): 0,
    ("gelu_and_mul", "none"): 1,
    ("gelu_and_mul", "tanh"): 2,
}


def code(activation: str) -> int:
    return _CODES[ACTIVATIONS[activation]]


@triton.jit
def gated(gate, up, ACT: tl.constexpr):  # type: ignore[no-untyped-def]
    """act(gate) * up, float32. tanh(z) = 2 sigmoid(2 z) - 1 turns the approximate GELU into a sigmoid."""
    if ACT == 0:
        return gate * tl.sigmoid(gate) * up
    elif ACT == 1:
        return 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476)) * up
    else:
        return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)) * up
