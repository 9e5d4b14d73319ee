"""Measure which configuration computes a product best on this GPU, and write it into the device's file.

    python -m plugin_triton.ops.tune 6144x4096 "14336x4096 gated" [--rows 1 2 4 8 16] [--folder DIR]

Each candidate computes with many weights in turn, more than the caches hold, in one recorded graph, as in a decode
step.
A candidate whose result is wrong is reported and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import triton

from plugin_triton.ops.activation import silu_and_mul
from plugin_triton.ops.configs import FOLDER, LIBRARY, ROWS, Config, device_name, read, shape_name, write
from plugin_triton.ops.linear import make_plan

_WEIGHT_BYTES = 400_000_000  # of all weights that take turns
_TOLERANCE = 8e-3
_GEMV = (
    (2, 2048, 4), (4, 2048, 8), (1, 2048, 4), (4, 1024, 4), (2, 1024, 1), (4, 512, 2), (2, 4096, 8), (1, 16384, 8),
    (8, 1024, 4), (1, 4096, 8),
)  # fmt: skip
_SKINNY = (
    (16, 256, 1, 1, 4, 2), (32, 256, 1, 2, 4, 2), (64, 128, 1, 4, 4, 2), (64, 128, 2, 4, 5, 2), (64, 128, 4, 4, 4, 2),
    (64, 256, 4, 4, 3, 1), (128, 64, 1, 4, 5, 2), (16, 128, 4, 1, 3, 2),
)  # fmt: skip


def candidates(rows: int, k: int, gated: bool) -> Iterator[Config]:
    """What is worth a try; tiles longer than K are not."""
    yield LIBRARY
    if rows == 1:
        for block_n, block_k, warps in _GEMV:
            if block_k < 2 * k:
                yield Config("gemv", block_n, block_k, warps)
    for block_n, block_k, split, warps, stages, ahead in _SKINNY:
        if block_k * split <= k and not (gated and block_n * block_k * stages > 40_000):  # twice the shared memory
            yield Config("skinny", block_n, block_k, warps, split, stages, ahead)


def runner(config: Config, device: torch.device, n: int, k: int, gated: bool) -> Callable[..., torch.Tensor]:
    """(x, weight) -> y, as `linear` or `fused_linear` with an activation would compute it by `config`."""
    activation = "silu" if gated else None
    if config.kind != "library":
        plan = make_plan(config, device, torch.bfloat16, n, k, activation, False)
        return lambda x, weight: plan(x, weight, None)
    return (lambda x, weight: silu_and_mul(F.linear(x, weight))) if gated else F.linear


def _turn(run: Callable[..., object], x: torch.Tensor, weights: list[torch.Tensor], index: int) -> None:
    run(x, weights[index])


def measure(run: Callable[[int], object], count: int) -> float:
    """Microseconds of run(i), i < count, in one recorded graph; the best of several replays."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for index in range(count):
            run(index)
    best = float("inf")
    for _ in range(6):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) * 1e3 / count)
    return best


def tune(n: int, k: int, gated: bool, all_rows: list[int]) -> dict[int, Config]:
    """Rows -> the fastest configuration, on the current device in bfloat16."""
    device = torch.device("cuda", torch.cuda.current_device())
    shape = (2 * n if gated else n, k)
    count = max(2, min(32, -(-_WEIGHT_BYTES // (shape[0] * k * 2))))
    weights = [torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02) for _ in range(count)]
    chosen: dict[int, Config] = {}
    for rows in all_rows:
        x = torch.randn(rows, k, dtype=torch.bfloat16, device=device)
        want = F.linear(x, weights[0]).float()
        if gated:
            want = F.silu(want[:, :n]) * want[:, n:]
        times: list[tuple[float, Config]] = []
        for config in candidates(rows, k, gated):
            run = runner(config, device, n, k, gated)
            try:
                error = float((run(x, weights[0]).float() - want).norm() / want.norm())
                if error > _TOLERANCE:
                    print(f"  {config}: wrong by {error:.2g}", file=sys.stderr)
                    continue
                turns = partial(_turn, run, x, weights)
                times.append((measure(turns, count), config))
            except triton.runtime.errors.OutOfResources as error:
                print(f"  {config}: {error}", file=sys.stderr)
        times.sort(key=lambda pair: pair[0])
        best, chosen[rows] = times[0]
        library = next(time for time, config in times if config is LIBRARY)
        size = shape[0] * k * 2
        print(
            f"{shape_name(n, k, gated)} rows {rows}: {best:.2f} us ({size / best / 1e6:.2f} TB/s), library "
            f"{library:.2f} us: {chosen[rows]}",
            flush=True,
        )
    return chosen


def parse_shape(text: str) -> tuple[int, int, bool]:
    """(n, k, gated) of "NxK" or "NxK gated"."""
    size, _, rest = text.partition(" ")
    n, _, k = size.partition("x")
    if not (n.isdigit() and k.isdigit() and int(n) and int(k)) or rest not in ("", "gated"):
        raise argparse.ArgumentTypeError(f'{text!r} is no shape: write "NxK" or "NxK gated", e.g. "14336x4096 gated"')
    return int(n), int(k), rest == "gated"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "shapes", nargs="+", type=parse_shape, help='"NxK", or "NxK gated" for a weight [2N, K] with an activation'
    )
    parser.add_argument("--rows", nargs="+", type=int, choices=ROWS, default=list(ROWS))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the device's file is")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no GPU is found: configurations are measured on the device that they are for")
    path = options.folder / f"{device_name(torch.device('cuda', torch.cuda.current_device()))}.json"
    products = read(path) if path.is_file() else {}
    for n, k, gated in options.shapes:
        products.setdefault(shape_name(n, k, gated), {}).update(tune(n, k, gated, options.rows))
        write(path, products, f"{torch.cuda.get_device_name()}, triton {triton.__version__}, torch {torch.__version__}")
    print(path)


if __name__ == "__main__":
    main()
