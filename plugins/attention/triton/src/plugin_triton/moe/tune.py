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
from typing import Any

import torch

from core.interfaces.moe import ExpertWeights
from plugin_triton.moe import fp8
from plugin_triton.moe.activation import code
from plugin_triton.moe.configs import MoeConfig, Shape, Tile
from plugin_triton.moe.gemv import run_down, run_gate_up
from plugin_triton.moe.grouped import Product, combine
from plugin_triton.moe.runner import compute
from plugin_triton.moe.sorting import Sorted, sort_by_expert

LAYERS = 6
Job = tuple[int, int, Tile]  # block_m, kernel (0: gate_up, 1: down), tile


@dataclass(frozen=True, slots=True)
class Timed:
    """us: of one layer. gbytes_s: weights read, each expert in use once. tflops: of the matrix products."""

    us: float
    gbytes_s: float
    tflops: float

    def figures(self) -> dict[str, float]:
        """As they stand in a table."""
        return {"us": round(self.us, 1), "gbytes_s": round(self.gbytes_s), "tflops": round(self.tflops, 1)}

    def __str__(self) -> str:
        return f"{self.us:8.1f} us {self.gbytes_s:6.0f} GB/s {self.tflops:6.1f} TFLOP/s"


# block_m -> (tiles for gate_up, tiles for down) worth trying. As of Tile: block_n, block_k, warps, stages, group_m.
_Sizes = dict[int, tuple[list[tuple[int, ...]], list[tuple[int, ...]]]]
_SIZES: _Sizes = {
    1: (
        [(1, 1024, 4), (1, 1024, 2), (2, 2048, 4), (2, 1024, 4), (1, 2048, 4), (4, 1024, 4), (4, 512, 4)],
        [(4, 512, 4, 2), (4, 512, 4, 4), (4, 512, 4, 8), (2, 512, 4, 6), (2, 512, 2, 4), (8, 512, 4, 3), (8, 512, 8, 4),
         (2, 1024, 4, 2), (4, 256, 2, 3), (4, 256, 2, 8)],
    ),
    16: (
        [(64, 128, 4, 3), (64, 128, 4, 2), (32, 128, 4, 4), (64, 64, 4, 4)],
        [(128, 128, 4, 3), (128, 128, 4, 2), (128, 64, 4, 4), (64, 128, 4, 4)],
    ),
    32: (
        [(64, 128, 4, 3), (64, 128, 4, 2), (64, 64, 4, 4), (32, 128, 4, 3)],
        [(128, 64, 4, 3), (128, 128, 4, 3), (128, 128, 4, 2), (64, 128, 4, 3), (64, 256, 4, 2)],
    ),
    64: (
        [(128, 64, 8, 4, 4), (128, 64, 4, 3, 4), (64, 64, 4, 3, 4), (64, 64, 4, 4, 1)],
        [(256, 64, 8, 4, 4), (128, 128, 8, 3, 4), (128, 64, 4, 4, 4), (128, 64, 4, 3, 1)],
    ),
    128: (
        [(128, 64, 8, 4, 4), (128, 64, 8, 3, 1), (128, 64, 8, 4, 16)],
        [(256, 64, 8, 3, 1), (256, 64, 8, 4, 4), (256, 64, 8, 4, 16), (128, 128, 8, 3, 4)],
    ),
}  # fmt: skip
# The same with weights on the left.
_SWAPPED: _Sizes = {
    16: ([(64, 128, 4, 3), (64, 128, 4, 4), (64, 128, 4, 2), (128, 64, 4, 3)], [(128, 128, 4, 3), (128, 128, 4, 2)]),
    32: ([(128, 64, 8, 3), (64, 128, 4, 2), (64, 128, 4, 3)], [(128, 64, 4, 4), (128, 128, 4, 2)]),
}


def candidates(block_m: int, kernel: int, weights: str) -> list[Tile]:
    """Tiles worth trying. kernel: 0 for gate_up, 1 for down. weights: as in `Shape`."""
    tiles = [_tile(sizes) for sizes in _SIZES[block_m][kernel]]
    if block_m in _SWAPPED:
        tiles += [replace(_tile(sizes), swap=True) for sizes in _SWAPPED[block_m][kernel]]
    if block_m > 1:
        tiles += [replace(tile, tma=True) for tile in tiles]
    if weights == fp8.BLOCK:  # its kernel has blocks of 128 along k, and each accumulator twice
        tiles = [replace(tile, block_k=fp8.GROUP) if block_m > 1 else tile for tile in tiles]
        most = 64 * 128 if kernel == 0 else 128 * 128
        tiles = [replace(tile, block_n=min(tile.block_n, most // block_m)) for tile in tiles]
    elif weights in fp8.CODES and block_m > 1:  # half the bytes: twice as many along k
        tiles += [replace(tile, block_k=2 * tile.block_k) for tile in tiles if tile.block_k <= 128]
    return list(dict.fromkeys(tiles))


def _tile(sizes: tuple[int, ...]) -> Tile:
    named: dict[str, Any] = dict(zip(("block_n", "block_k", "warps", "stages", "group_m"), sizes, strict=False))
    return Tile(**named)


def blocks_for(shape: Shape, tokens: int) -> list[int]:
    """block_m worth trying: about the rows that an expert gets, and 1 where few tokens share experts."""
    rows = max(1.0, tokens * shape.top_k / shape.experts)
    sizes = [size for size in (16, 32, 64, 128) if size / 4 <= max(rows, 4) and rows <= size * 8]
    return ([1] if tokens <= 16 else []) + (sizes if tokens > 1 else [])


class Bench:
    """Random layers of one shape, and times of their kernels for one number of tokens.

    dtype: of tokens, and of plain weights."""

    def __init__(self, shape: Shape, device: torch.device, *, layers: int = LAYERS, dtype: torch.dtype) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        self.weights = [self._weights() for _ in range(layers)]
        self.act = code("silu")

    def _weights(self) -> ExpertWeights:
        e, h, i = self.shape.experts, self.shape.hidden, self.shape.intermediate
        gate_up = torch.empty(e, 2 * i, h, dtype=self.dtype, device=self.device).normal_(std=h**-0.5)
        down = torch.empty(e, h, i, dtype=self.dtype, device=self.device).normal_(std=i**-0.5)
        if self.shape.weights not in fp8.CODES:
            return ExpertWeights(gate_up, down)
        stored = [(part * 64).to(torch.float8_e4m3fn) for part in (gate_up, down)]
        scales = {
            name: torch.full(size, 1 / 64, device=self.device)
            for name, size in fp8.scale_shapes(self.shape.weights, e, h, i).items()
        }
        return ExpertWeights(stored[0], stored[1], self.shape.weights, scales)

    def inputs(self, tokens: int) -> None:
        shape = self.shape
        generator = torch.Generator(self.device).manual_seed(tokens)
        self.tokens = tokens
        self.x = torch.randn(tokens, shape.hidden, generator=generator, device=self.device).to(self.dtype)
        scores = torch.rand(len(self.weights), tokens, shape.experts, generator=generator, device=self.device)
        self.factors, self.ids = scores.topk(shape.top_k, dim=-1)
        self.used = sum(len(ids.unique()) for ids in self.ids) / len(self.ids)

    def timed(self, run: Callable[[int], object], parts: float = 3.0) -> Timed:
        """run(layer) on all layers in turn. parts: how many of the three weight matrices (gate, up, down) it reads."""
        us = graph_us(lambda: [run(layer) for layer in range(len(self.weights))]) / len(self.weights)
        elements = parts * self.shape.hidden * self.shape.intermediate
        size = self.weights[0].down.element_size()
        flop = 2 * elements * self.tokens * self.shape.top_k
        return Timed(us, self.used * elements * size / us / 1e3, flop / us / 1e6)

    def kernel(self, job: Job) -> Timed:
        """One kernel alone (with the quantization of its input, if any)."""
        block_m, kernel, tile = job
        run = self._first(block_m, tile) if kernel == 0 else self._second(block_m, tile)
        return self.timed(run, 2 - kernel)

    def run_once(self, job: Job) -> None:
        """So that it gets compiled."""
        block_m, kernel, tile = job
        (self._first(block_m, tile) if kernel == 0 else self._second(block_m, tile))(0)

    def _first(self, block_m: int, tile: Tile) -> Callable[[int], object]:
        if block_m == 1:
            return lambda i: run_gate_up(self.x, self.weights[i], self.ids[i], tile)
        orders = self._orders(block_m)
        h = self._pairs(self.shape.intermediate)
        top_k, act = self.shape.top_k, self.act
        products = [
            Product(weights, "gate_up", self.dtype, self.x.stride(0), top_k, act, block_m, tile)
            for weights in self.weights
        ]
        return lambda i: products[i](self.x, h, self.factors[i], orders[i].numbers, orders[i].max_blocks)

    def _second(self, block_m: int, tile: Tile) -> Callable[[int], object]:
        if block_m == 1:
            h = self._pairs(self.shape.intermediate, torch.float32)
            return lambda i: run_down(h, self.weights[i], self.ids[i], self.factors[i], self.dtype, tile)
        orders = self._orders(block_m)
        h, y = self._pairs(self.shape.intermediate), self._pairs(self.shape.hidden)
        products = [Product(weights, "down", self.dtype, h.stride(0), 1, -1, block_m, tile) for weights in self.weights]
        return lambda i: products[i](h, y, self.factors[i], orders[i].numbers, orders[i].max_blocks)

    def _orders(self, block_m: int) -> list[Sorted]:
        return [sort_by_expert(ids, self.shape.experts, block_m) for ids in self.ids]

    def sorting(self, block_m: int) -> float:
        """us."""
        return self.timed(lambda i: sort_by_expert(self.ids[i], self.shape.experts, block_m)).us

    def combining(self) -> float:
        """us."""
        y = self._pairs(self.shape.hidden).view(self.tokens, self.shape.top_k, -1)
        return self.timed(lambda i: combine(y)).us

    def layer(self, config: MoeConfig) -> Timed:
        return self.timed(lambda i: compute(self.x, self.weights[i], self.ids[i], self.factors[i], config))

    def _pairs(self, width: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(self.tokens * self.shape.top_k, width, device=self.device).to(dtype or self.dtype)


def graph_us(run: Callable[[], object], least_us: float = 3000.0) -> float:
    """Median of three times of a graph of `run`, in microseconds."""
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
    return sorted(_replayed(graph, max(1, round(least_us / once))) for _ in range(3))[1]


def _replayed(graph: torch.cuda.CUDAGraph, times: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / times


def tune(bench: Bench, tokens: int, tell: Callable[[str], None], most: int = 3) -> Iterator[tuple[MoeConfig, Timed]]:
    """For each block_m the best configuration: of the `most` best tiles of each kernel the pair that makes the whole
    layer fastest (kernels share the caches, and how a processor's memory is split). tell: gets a line for each of
    these tiles, and for each that the device cannot run."""
    bench.inputs(tokens)
    for block_m in blocks_for(bench.shape, tokens):
        tiles = [_best(bench, block_m, kernel, tell, most) for kernel in (0, 1)]
        found = [
            (bench.layer(config), config)
            for config in (MoeConfig(block_m, *pair) for pair in itertools.product(*tiles))
        ]
        if found:
            time, config = min(found, key=lambda item: item[0].us)
            yield config, time


def _best(bench: Bench, block_m: int, kernel: int, tell: Callable[[str], None], most: int) -> list[Tile]:
    found: list[tuple[Timed, Tile]] = []
    name = f"T={bench.tokens} block_m={block_m} {('gate_up', 'down')[kernel]:8}"
    for tile in candidates(block_m, kernel, bench.shape.weights):
        try:
            found.append((bench.kernel((block_m, kernel, tile)), tile))
        except Exception as exc:  # the device has no room for the tile: Triton's OutOfResources, a compiler's error
            tell(f"{name} {tile}: {type(exc).__name__} {str(exc)[:80]}")
    found.sort(key=lambda item: item[0].us)
    for time, tile in found[:most]:
        tell(f"{name}{time} {tile}")
    return [tile for _, tile in found[:most]]


def compile_all(shapes: Sequence[Shape], tokens: Sequence[int], dtype: torch.dtype, processes: int) -> None:
    """Every candidate's kernels into Triton's cache on disk, in several processes: one after the other takes far
    longer than measuring. Compiled kernels do not depend on the number of experts that a layer holds."""
    jobs = [
        (shape, (block_m, kernel, tile))
        for shape in shapes
        for block_m in sorted({block_m for count in tokens for block_m in blocks_for(shape, count)}, reverse=True)
        for kernel in (0, 1)
        for tile in candidates(block_m, kernel, shape.weights)
    ]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(_compile, [(dtype, jobs[i::processes]) for i in range(processes)]))


def _compile(work: tuple[torch.dtype, list[tuple[Shape, Job]]]) -> None:
    dtype, jobs = work
    device = torch.device("cuda", torch.cuda.current_device())
    for shape in dict.fromkeys(shape for shape, _ in jobs):
        bench = Bench(replace(shape, experts=shape.top_k), device, layers=1, dtype=dtype)
        for tokens in (1, 2):  # unsorted kernels tell one token from several
            bench.inputs(tokens)
            for job in [job for other, job in jobs if other == shape and (tokens == 1 or job[0] == 1)]:
                with contextlib.suppress(Exception):  # the tuner itself says which tiles do not fit
                    bench.run_once(job)
