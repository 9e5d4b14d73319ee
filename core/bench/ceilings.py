"""What the device reaches in the same run: a large copy, and large matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from core.bench.timing import synchronize

_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Ceilings:
    """copy_bytes_per_s: read and written bytes together. product_ops_per_s: matrix product in the compute type, a
    multiply-add being two. product_8bit_ops_per_s: of 8-bit floating-point matrices, None where there is none."""

    copy_bytes_per_s: float
    product_ops_per_s: float
    product_8bit_ops_per_s: float | None = None

    def ops_per_s(self, weight_bits: int) -> float:
        """Of products with weights of that size."""
        if weight_bits == 8 and self.product_8bit_ops_per_s is not None:
            return self.product_8bit_ops_per_s
        return self.product_ops_per_s


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Take the three figures; under a second on an accelerator, which needs about 3 GiB free for it."""
    on_host = device.type == "cpu"
    copy = _copy((64 << 20) if on_host else (1 << 30), device, 3 if on_host else 20)
    side = 512 if on_host else 8192
    a = torch.randn(side, side, dtype=torch.float32, device=device).to(dtype)
    out = torch.empty_like(a)
    product_s = seconds_each(lambda: torch.mm(a, a.t(), out=out), device, 3 if on_host else 10)
    ops = 2.0 * side**3
    return Ceilings(copy, ops / product_s, None if on_host else _product_8bit(a, ops, device))


def _copy(size: int, device: torch.device, count: int) -> float:
    """Bytes a second of copies of `size` bytes."""
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return 2 * size / seconds_each(lambda: target.copy_(source), device, count)


def _product_8bit(a: torch.Tensor, ops: float, device: torch.device) -> float | None:
    one = torch.ones((), dtype=torch.float32, device=device)
    try:
        small = a.clamp(-2, 2).to(torch.float8_e4m3fn)

        def run() -> torch.Tensor:
            return torch._scaled_mm(small, small.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)

        return ops / seconds_each(run, device, 10)
    except (RuntimeError, AttributeError, TypeError):  # the device has no such product
        return None


def seconds_each(run: Callable[[], object], device: torch.device, count: int) -> float:
    """Seconds of one call, the best of several rounds of `count` calls that are queued together."""
    best = float("inf")
    run()
    for _ in range(_REPEATS):
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(count):
            run()
        synchronize(device)
        best = min(best, (time.perf_counter() - begin) / count)
    return best
