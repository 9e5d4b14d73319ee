"""Products with e4m3 weights on a GPU: right against float64 first, then how fast, beside PyTorch's in bfloat16.

    python plugins/quant/fp8/evaluation/gpu.py [seconds]

Shapes are those of Llama-3.1-8B. Each call is recorded in a CUDA graph over several copies of the weight, so that they
come from memory and not from the second-level cache, and nothing of the host's is timed. It stops after `seconds`.
"""

# ruff: noqa: B023, E501

from __future__ import annotations

import subprocess
import sys
import time
import traceback
from collections.abc import Callable

import torch
from torch.nn import functional as F

from core.ops.reference import REFERENCES
from plugin_fp8 import few, grouped, kernels, scales
from plugin_fp8.products import Grouped, Reference, Scaled, Weight, product_of

DEVICE = torch.device("cuda")
SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
ROWS = (1, 16, 64, 128, 256, 8192)
END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 75.0)


def part(run: Callable[[], None]) -> None:
    """One part; a failure is shown and the next goes on."""
    print(f"== {run.__name__}", flush=True)
    try:
        run()
    except Exception:
        traceback.print_exc(limit=4, file=sys.stdout)


def late() -> bool:
    return time.monotonic() > END


def weight(rows: int, columns: int, group: int, bias: bool = False, static: bool = False) -> Weight:
    wide = torch.randn(rows, columns, device=DEVICE) * columns**-0.5
    if group:
        groups = -(-columns // group)
        scale = torch.rand(rows, groups, device=DEVICE) * 1e-3 + 1e-4
        stored = scales.to_e4m3(wide / scales.spread(scale, group, columns))
    else:
        stored, scale = scales.quantize_rows(wide)
    offset = torch.randn(rows, device=DEVICE).bfloat16() if bias else None
    inputs = torch.tensor(4.5 / 448, device=DEVICE) if static else None
    return Weight(stored, scale, group or columns, inputs, offset)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))


def correct() -> None:
    """Error of each product beside that of the reference, both against float64 with inputs as they are; and how far the
    product is from the reference itself."""
    for rows, columns, group, static in (
        (4096, 4096, 0, False), (6144, 4096, 0, True), (28672, 4096, 0, False), (1000, 1040, 0, False), (4096, 4096, 128, False),
        (1000, 1056, 32, False), (4096, 14336, 0, False), (4096, 14336, 128, False), (72, 4112, 64, False),
    ):  # fmt: skip
        held = weight(rows, columns, group, bias=True, static=static)
        product = product_of(held, REFERENCES, kernels.Scratch())
        found = []
        for tokens in (1, 3, 17, 32, 64, 65, 200):
            x = torch.randn(tokens, columns, device=DEVICE).bfloat16()
            want = x.double() @ held.dense(torch.float64).t() + held.bias.double()
            own = Reference(held)(x)
            found.append(
                f"{tokens}: {error(product(x), want):.4f} ({error(own, want):.4f}, {error(product(x), own):.4f})"
            )
        print(
            f"[{rows}, {columns}] group {group} static {static} {type(product).__name__}  " + "  ".join(found),
            flush=True,
        )


def fronts() -> None:
    """The norm that quantizes, against its parts: share of numbers that differ, error of scales; and microseconds."""
    for width in (4096, 2048, 14336, 320):
        for group in (0, 128):
            x, r = (torch.randn(64, width, device=DEVICE).bfloat16() for _ in range(2))
            w = torch.rand(width, device=DEVICE).bfloat16() + 0.5
            found = kernels.norm_quantize(x, r, w, 1e-5, group, True)
            normed = torch.rms_norm(x + r, (width,), w, 1e-5)
            stored, scale = scales.quantize_groups(found.normed, group or width)
            off = float((stored.view(torch.uint8) != found.stored.view(torch.uint8)).float().mean())
            us = timed([lambda: kernels.norm_quantize(x, r, w, 1e-5, group, False)] * 8)
            print(
                f"width {width} group {group}: sum {torch.equal(found.total, x + r)}, norm off {error(found.normed, normed):.5f}, "
                f"e4m3 differ {off:.5f}, scales off {error(found.scale, scale):.6f}, {us:.2f} us for 64 tokens", flush=True
            )  # fmt: skip


def timed(calls: list[Callable[[], object]]) -> float:
    """Microseconds of one call, recorded: all copies in turn, the best of five replays."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    repeats = max(1, 24 // len(calls))
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    best = float("inf")
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end))
    return best * 1e3 / (repeats * len(calls))


def attempt(make: Callable[[], list[Callable[[], object]]]) -> str:
    try:
        return f"{timed(make()):8.1f}"
    except Exception as problem:
        torch.cuda.synchronize()
        return f"  {type(problem).__name__}"


def layers() -> None:
    """Microseconds by number of tokens: bfloat16 product; ours with quantized inputs; torch's scaled product; blocks of 128."""
    print(f"{'':8} {'T':>5} {'bf16':>8} {'ours':>8} {'scaled':>8} {'blocks':>8}")
    for name, (rows, columns) in SHAPES.items():
        copies = max(2, min(8, (256 << 20) // (rows * columns)))
        plain = [torch.randn(rows, columns, device=DEVICE, dtype=torch.bfloat16) for _ in range(copies)]
        memory = kernels.Scratch()
        by_row = [Scaled(weight(rows, columns, 0), REFERENCES, memory) for _ in range(copies)]
        by_group = [Grouped(weight(rows, columns, 128), REFERENCES, memory) for _ in range(copies)]
        for tokens in ROWS:
            if late():
                return
            x = torch.randn(tokens, columns, device=DEVICE).bfloat16()
            stored, scale = scales.quantize_rows(x)
            blocks = scales.quantize_groups(x, 128)
            cells = [
                attempt(lambda: [lambda w=w: F.linear(x, w) for w in plain]),
                attempt(lambda: [lambda p=p: p.multiply(stored, scale, torch.bfloat16) for p in by_row]),
                attempt(lambda: [lambda p=p: p.many(stored, scale, torch.bfloat16) for p in by_row]),
                attempt(lambda: [lambda p=p: p.multiply(*blocks, torch.bfloat16) for p in by_group]),
            ]  # fmt: skip
            print(f"{name:8} {tokens:5} " + " ".join(cells), flush=True)


TALL = (
    (64, 128, 4, 5, 1), (64, 128, 4, 6, 2), (64, 256, 4, 4, 1), (64, 256, 4, 4, 2), (64, 256, 4, 4, 4), (64, 256, 4, 4, 3),
    (128, 128, 4, 5, 1), (64, 512, 4, 3, 2), (64, 128, 4, 8, 2), (64, 128, 4, 8, 4), (64, 256, 4, 6, 2),
)  # fmt: skip
TRIED, TOKENS, WORKERS = ("qkv", "o", "down", "gate_up"), (1, 64, 128), 12


def trials() -> list[few.Tile]:
    return [few.Tile(*shape, ahead) for shape in TALL for ahead in (2, 4)]


class Trial:
    """One shape and number of tokens; a call for each tile."""

    def __init__(self, name: str, tokens: int, copies: int) -> None:
        rows, columns = SHAPES[name]
        self.held = [weight(rows, columns, 0) for _ in range(copies)]
        self.memory = (torch.empty(8 * rows * 128, device=DEVICE), torch.zeros(rows, dtype=torch.int32, device=DEVICE))
        self.use(tokens)

    def use(self, tokens: int) -> None:
        rows, columns = self.held[0].stored.shape
        self.x, self.scale = scales.quantize_rows(torch.randn(tokens, columns, device=DEVICE).bfloat16())
        inputs = self.x.double() * self.scale.double()
        self.want = inputs @ self.held[0].dense(torch.float64).t()
        self.y = torch.empty(tokens, rows, device=DEVICE, dtype=torch.bfloat16)

    def call(self, tile: few.Tile, w: Weight) -> None:
        few.run(tile, self.x, self.scale, w.stored, w.scale, 0, None, self.y, self.memory, pdl=True)


def compile_share(number: int) -> None:
    """This worker's share of everything that `tiles` tries, into the cache on disk."""
    index = 0
    for name in TRIED:
        made = Trial(name, 1, 1)
        for tokens in TOKENS:
            made.use(tokens)
            for tile in trials():
                index += 1
                if index % WORKERS == number and not late():
                    try:
                        made.call(tile, made.held[0])
                        torch.cuda.synchronize()
                    except Exception:  # the main process tells
                        continue


def tiles() -> None:
    """Tiles of the kernel for few tokens: microseconds, TB/s and error against float64 with the same quantized inputs."""
    begin = time.monotonic()
    words = [sys.executable, __file__, str(max(10.0, END - begin - 20)), "compile"]
    workers = [subprocess.Popen([*words, str(number)]) for number in range(WORKERS)]
    for worker in workers:
        worker.wait()
    print(f"compiled in {time.monotonic() - begin:.1f} s", flush=True)
    for name in TRIED:
        rows, columns = SHAPES[name]
        made = Trial(name, 1, max(2, min(8, (256 << 20) // (rows * columns))))
        for tokens in TOKENS:
            made.use(tokens)
            found = []
            for tile in trials():
                if late():
                    break
                try:
                    made.call(tile, made.held[0])
                    off = error(made.y, made.want)
                    found.append((timed([lambda w=w: made.call(tile, w) for w in made.held]), tile, off))
                except Exception as problem:
                    print(f"   {tile}: {type(problem).__name__}: {str(problem)[:100]}")
            for us, tile, off in sorted(found, key=lambda item: item[0])[:4]:
                t = (tile.rows, tile.columns, tile.warps, tile.stages, tile.split, tile.ahead)
                rate = rows * columns / us / 1e6
                print(
                    f"{name:8} {tokens:3} tokens  {t!s:26} {us:7.1f} us  {rate:.2f} TB/s  error {off:.5f}", flush=True
                )


def blocks_by_torch() -> None:
    """Whether torch has a product of 1x128 and 128x128 blocks, and how fast; beside other tiles of ours."""
    rows, columns, tokens = 28672, 4096, 8192
    x = torch.randn(tokens, columns, device=DEVICE).bfloat16()
    stored, scale = scales.quantize_groups(x, 128)
    held = weight(rows, columns, 128)
    y = torch.empty(tokens, rows, device=DEVICE, dtype=torch.bfloat16)
    ops = 2.0 * rows * columns * tokens
    for tile in ((128, 128, 8, 3), (128, 128, 8, 4), (128, 256, 8, 3), (128, 128, 4, 4), (64, 256, 4, 4)):
        if late():
            return
        cell = attempt(
            lambda t=tile: [lambda: grouped.run(stored, scale, held.stored, held.scale, 128, None, y, t)] * 2  # type: ignore[misc]
        )
        rate = f"{ops / float(cell) / 1e6:.0f} TFLOP/s" if cell.strip()[0].isdigit() else ""
        print(f"grouped {tile!s:20} {cell} us {rate}", flush=True)
    b_scale = torch.rand(columns // 128, rows // 128, device=DEVICE) + 0.5
    a_scale = scale.t().contiguous().t()
    for label, b in (("[K/128, N/128]", b_scale), ("transposed memory", b_scale.t().contiguous().t())):
        cell = attempt(
            lambda b=b: [  # type: ignore[misc]
                lambda: torch._scaled_mm(stored, held.stored.t(), a_scale, b, out_dtype=torch.bfloat16)
            ] * 2
        )  # fmt: skip
        print(f"torch._scaled_mm 1x128 by 128x128, scale b {label}: {cell} us", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    if "compile" in sys.argv:
        compile_share(int(sys.argv[3]))
        sys.exit()
    print(torch.cuda.get_device_name(), torch.__version__)
    for run in (correct, fronts, layers, tiles, blocks_by_torch):
        part(run)
