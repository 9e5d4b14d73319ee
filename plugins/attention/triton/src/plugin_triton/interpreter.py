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
