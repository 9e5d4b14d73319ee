"""Measure tiles on a device: each kernel for itself over a list of candidates, then the whole layer with the best.

Times are of CUDA graphs over several layers in turn, so that no weight is found in the L2 cache and no launch of the
host is counted.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import torch

from core.interfaces.moe import ExpertWeights
from plugin_triton.moe.activation import code
from plugin_triton.moe.configs import MoeConfig, Shape, Tile
from plugin_triton.moe.gemv import run_down, run_gate_up
from plugin_triton.moe.grouped import combine, multiply
from plugin_triton.moe.launch import can_overlap
from plugin_triton.moe.sorting import sort_by_expert

LAYERS = 6


@dataclass(frozen=True, slots=True)
class Timed:
    """us: of one layer. gbytes_s: weights read, each expert in use once. tflops: of the matrix products."""

    us: float
    gbytes_s: float
    tflops: float

    def __str__(self) -> str:
        return f"{self.us:8.1f} us {self.gbytes_s:6.0f} GB/s {self.tflops:6.1f} TFLOP/s"


def candidates(block_m: int) -> tuple[list[Tile], list[Tile]]:
    """(for gate_up, for down) worth trying with blocks of that many rows."""
    if block_m == 1:
        sizes = [(n, k, w, s) for n, (k, w), s in itertools.product((1, 2, 4, 8), ((512, 4), (1024, 4), (2048, 4), (2048, 8), (256, 4)), (1,)) if n * k <= 8192]
        sizes_down = [(n, k, w, s) for n, (k, w), s in itertools.product((2, 4, 8, 16), ((256, 4), (512, 4), (256, 2), (1024, 4)), (1, 4)) if n * k <= 4096]
        return [Tile(*size) for size in sizes], [Tile(*size) for size in sizes_down]
    if block_m == 16:
        first = [(16, 128, 4, 4), (32, 128, 4, 3), (32, 128, 4, 4), (32, 256, 4, 3), (64, 64, 4, 4), (64, 128, 4, 3), (16, 256, 4, 4)]
        second = [(32, 128, 4, 4), (64, 128, 4, 3), (64, 128, 4, 4), (64, 256, 4, 3), (128, 64, 4, 4), (128, 128, 4, 3), (32, 256, 4, 3)]
        swapped = [(64, 64, 4, 4), (64, 128, 4, 3), (128, 64, 4, 3)]
        swapped_down = [(64, 128, 4, 4), (128, 64, 4, 4), (128, 128, 4, 3), (64, 256, 4, 3)]
        return (
            [Tile(*size) for size in first] + [Tile(*size, swap=True) for size in swapped],
            [Tile(*size) for size in second] + [Tile(*size, swap=True) for size in swapped_down],
        )
    if block_m == 32:
        first = [Tile(32, 128, 4, 3), Tile(64, 64, 4, 3), Tile(64, 128, 4, 3, swap=True), Tile(128, 64, 8, 3, swap=True)]
        second = [Tile(64, 128, 4, 3), Tile(128, 64, 4, 3), Tile(128, 64, 4, 4, swap=True), Tile(128, 128, 8, 3, swap=True)]
        return first, second
    if block_m == 64:
        first = [Tile(64, 64, 4, 4, 4), Tile(128, 64, 4, 3, 4), Tile(128, 64, 8, 3, 4), Tile(128, 64, 8, 4, 4), Tile(64, 128, 4, 3, 4)]
        second = [Tile(128, 64, 4, 4, 4), Tile(128, 128, 4, 3, 4), Tile(256, 64, 4, 3, 4), Tile(256, 64, 8, 4, 4), Tile(128, 64, 8, 4, 4)]
        return first, second
    first = [Tile(128, 64, 8, 3, g) for g in (1, 4, 16)] + [Tile(128, 64, 8, 4, 4), Tile(64, 64, 8, 4, 4), Tile(64, 64, 4, 4, 4), Tile(64, 128, 8, 3, 4)]
    second = [Tile(128, 64, 8, 3, 4), Tile(128, 64, 8, 4, 4), Tile(256, 64, 8, 3, 1), Tile(256, 64, 8, 3, 4), Tile(256, 64, 8, 4, 4), Tile(128, 64, 4, 4, 4), Tile(128, 128, 8, 3, 4)]
    return first, second


def blocks_for(shape: Shape, tokens: int) -> list[int]:
    """block_m worth trying: about the rows that an expert gets, and 1 where few experts are shared."""
    rows = tokens * shape.top_k / shape.experts
    sizes = [1] if tokens <= 16 else []
    if tokens > 1:
        sizes += [size for size in (16, 32, 64, 128) if size / 4 <= max(rows, 4) <= size * 16]
    return sizes


class Bench:
    """Random layers of one shape, and times of their kernels for one number of tokens."""

    def __init__(self, shape: Shape, device: torch.device, *, layers: int = LAYERS, dtype: torch.dtype) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        e, h, i = shape.experts, shape.hidden, shape.intermediate
        self.gate_up = [torch.empty(e, 2 * i, h, dtype=dtype, device=device) for _ in range(layers)]
        self.down = [torch.empty(e, h, i, dtype=dtype, device=device) for _ in range(layers)]
        for one in self.gate_up:
            one.normal_(std=h**-0.5)
        for one in self.down:
            one.normal_(std=i**-0.5)
        self.overlap = can_overlap(device)
        self.act = code("silu")

    def inputs(self, tokens: int) -> None:
        shape = self.shape
        generator = torch.Generator(self.device).manual_seed(tokens)
        self.tokens = tokens
        self.x = torch.randn(tokens, shape.hidden, generator=generator, device=self.device).to(self.dtype)
        scores = torch.rand(len(self.down), tokens, shape.experts, generator=generator, device=self.device)
        self.factors, self.ids = scores.topk(shape.top_k, dim=-1)
        self.used = sum(len(ids.unique()) for ids in self.ids) / len(self.ids)

    def timed(self, run: Callable[[int], object], parts: float = 3.0) -> Timed:
        """run(layer) on all layers in turn. parts: how many of the three weight matrices (gate, up, down) it reads."""
        us = graph_us(lambda: [run(layer) for layer in range(len(self.down))]) / len(self.down)
        elements = parts * self.shape.hidden * self.shape.intermediate
        size = torch.empty(0, dtype=self.dtype).element_size()
        flop = 2 * elements * self.tokens * self.shape.top_k
        return Timed(us, self.used * elements * size / us / 1e3, flop / us / 1e6)

    def first(self, block_m: int, tile: Tile) -> Timed:
        """The gate_up kernel alone."""
        if block_m == 1:
            return self.timed(lambda i: run_gate_up(self.x, self.gate_up[i], self.ids[i], self.act, tile, self.overlap), 2)
        orders = [sort_by_expert(ids, self.shape.experts, block_m, self.overlap) for ids in self.ids]
        h = self._pairs(self.shape.intermediate)
        return self.timed(
            lambda i: multiply(self.x, self.gate_up[i], h, self.factors[i], orders[i], self.shape.top_k, self.act, block_m, tile, self.overlap), 2
        )  # fmt: skip

    def second(self, block_m: int, tile: Tile) -> Timed:
        """The down kernel alone."""
        if block_m == 1:
            h = self._pairs(self.shape.intermediate, torch.float32)
            return self.timed(lambda i: run_down(h, self.down[i], self.ids[i], self.factors[i], self.dtype, tile, self.overlap), 1)
        orders = [sort_by_expert(ids, self.shape.experts, block_m, self.overlap) for ids in self.ids]
        h, y = self._pairs(self.shape.intermediate), self._pairs(self.shape.hidden)
        return self.timed(
            lambda i: multiply(h, self.down[i], y, self.factors[i], orders[i], 1, -1, block_m, tile, self.overlap), 1
        )

    def sorting(self, block_m: int) -> float:
        """us."""
        return self.timed(lambda i: sort_by_expert(self.ids[i], self.shape.experts, block_m, self.overlap)).us

    def combining(self) -> float:
        """us."""
        y = self._pairs(self.shape.hidden).view(self.tokens, self.shape.top_k, -1)
        return self.timed(lambda i: combine(y, self.overlap)).us

    def run_once(self, block_m: int, which: int, tile: Tile) -> None:
        """Launch the first (0) or second (1) kernel with a tile, so that it gets compiled."""
        measure = (self.first, self.second)[which]
        self.timed = lambda run, parts=0.0: run(0)  # type: ignore[assignment,method-assign]
        measure(block_m, tile)

    def layer(self, config: MoeConfig) -> Timed:
        from plugin_triton.moe.runner import compute

        weights = [ExpertWeights(a, b) for a, b in zip(self.gate_up, self.down, strict=True)]
        return self.timed(lambda i: compute(self.x, weights[i], self.ids[i], self.factors[i], config))

    def _pairs(self, width: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(self.tokens * self.shape.top_k, width, device=self.device).to(dtype or self.dtype)


def graph_us(run: Callable[[], object], least_us: float = 3000.0) -> float:
    """Median of three graph replays' times in microseconds."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    once = _replayed(graph, 1)
    times = sorted(_replayed(graph, max(1, round(least_us / once))) for _ in range(3))
    return times[1]


def _replayed(graph: torch.cuda.CUDAGraph, times: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / times


def tune(
    bench: Bench, tokens: int, tell: Callable[[str], None], most: int = 3
) -> Iterator[tuple[MoeConfig, Timed]]:
    """For each block_m the best tiles and the layer's time with them. tell: gets a line for each of the `most` best
    tiles of each kernel."""
    bench.inputs(tokens)
    for block_m in blocks_for(bench.shape, tokens):
        best = []
        for name, tiles, measure in zip(
            ("gate_up", "down"), candidates(block_m), (bench.first, bench.second), strict=True
        ):
            found = []
            for tile in tiles:
                try:
                    found.append((measure(block_m, tile), tile))
                except Exception as exc:  # a tile that the device has no room for
                    tell(f"T={tokens} block_m={block_m} {name} {tile}: {type(exc).__name__} {str(exc)[:80]}")
            if not found:
                break
            found.sort(key=lambda item: item[0].us)
            for time, tile in found[:most]:
                tell(f"T={tokens} block_m={block_m} {name:8}{time} {tile}")
            best.append(found[0][1])
        if len(best) == 2:
            config = MoeConfig(block_m, *best)
            yield config, bench.layer(config)


def compile_all(shape: Shape, tokens: Sequence[int], dtype: torch.dtype, processes: int) -> None:
    """Every candidate's kernels into Triton's cache on disk, in several processes: one after the other takes far
    longer than measuring. Compiled kernels do not depend on the number of experts that a layer holds."""
    jobs = sorted({block_m for count in tokens for block_m in blocks_for(shape, count)})
    work = [(block_m, which, index) for block_m in jobs for which in (0, 1) for index in range(len(candidates(block_m)[which]))]
    work.sort(key=lambda item: (-item[0], item[2]))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(_compile, [(shape, dtype, work[i::processes], max(tokens)) for i in range(processes)]))


def _compile(job: tuple[Shape, torch.dtype, list[tuple[int, int, int]], int]) -> None:
    shape, dtype, work, _ = job
    device = torch.device("cuda", torch.cuda.current_device())
    bench = Bench(replace(shape, experts=shape.top_k), device, layers=1, dtype=dtype)
    bench.inputs(16)
    for block_m, which, index in work:
        tile = candidates(block_m)[which][index]
        with contextlib.suppress(Exception):  # the tuner itself says which tiles do not fit
            bench.run_once(block_m, which, tile)
