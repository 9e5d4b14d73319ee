"""What Triton's interpreter (TRITON_INTERPRET=1, kernels on the CPU, for tests) does otherwise than a compiler."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b, acc):  # type: ignore[no-untyped-def]
    """acc + a @ b. The interpreter multiplies the bits of bfloat16 numbers as if they were integers."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc)


@triton.jit
def to_float8(x, kind):  # type: ignore[no-untyped-def]
    """float32 within the range of float8_e4m3fn -> `kind`, rounded to the nearest, ties to even. The interpreter's own
    conversion loses the carry, so there the number is rounded before."""
    if INTERPRETED:
        exponent = ((x.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
        step = ((tl.maximum(exponent, -6) - 3 + 127) << 23).to(tl.float32, bitcast=True)
        x = (x / step + 12582912.0 - 12582912.0) * step  # 1.5 * 2^23: what is added to it is rounded to whole numbers
    return x.to(kind)
