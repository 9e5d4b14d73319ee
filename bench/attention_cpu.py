"""Microseconds of one attention layer on this CPU, KV store included, for the shapes that the targets name.

    python bench/attention_cpu.py [--threads N] [--page-size N] [--dtype bfloat16]

Each figure is the tenth percentile of repeated runs, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from core.attention.torch_native import TorchNativeAttention
from core.interfaces.attention import AttentionConfig
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, StateKind

SHAPES = {"4 heads / 2 KV / 64": (4, 2, 64), "16 heads / 8 KV / 128": (16, 8, 128)}


def measure(call: Callable[[], object], seconds: float = 0.3) -> float:
    """Tenth percentile in microseconds."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 10] * 1e6


class Case:
    """A backend with random KV and a step of given (history, new tokens) rows."""

    def __init__(
        self, shape: tuple[int, int, int], rows: list[tuple[int, int]], page_size: int, dtype: torch.dtype, shared: int
    ) -> None:
        heads, kv_heads, dim = shape
        spec = AttentionSpec(heads, kv_heads, dim, dim**-0.5)
        columns = [-(-(history + new) // page_size) for history, new in rows]
        num_pages = sum(columns) + 1
        config = AttentionConfig(
            CacheGroupSpec("kv", StateKind.FULL, (0,), kv_heads, dim, dim),
            {0: spec}, heads, kv_heads, page_size, num_pages, dtype, torch.device("cpu"), 256, 8192, 8192,
        )  # fmt: skip
        self.backend = TorchNativeAttention(config, PluginContext())
        self.kv = tuple(torch.randn(*x.shape).to(dtype) for x in self.backend.allocate()[0])
        # Prompts' pages lie together, pages got while decoding do not: the usual state of a server.
        free = list(range(1, num_pages))
        table = np.zeros((len(rows), max(columns)), dtype=np.int32)
        for i, count in enumerate(columns):
            table[i, :count] = [free.pop(0) for _ in range(count)]
        if len(rows) > 1:
            ends = np.array(columns) - 1
            last = table[np.arange(len(rows)), ends].copy()
            table[np.arange(len(rows)), ends] = np.roll(last, 1)
        table[:, : shared // page_size] = table[0, : shared // page_size]
        new = np.array([n for _, n in rows], dtype=np.int32)
        ends = np.array([h + n for h, n in rows], dtype=np.int32)
        slots = [
            int(table[i, p // page_size]) * page_size + p % page_size
            for i, (h, n) in enumerate(rows)
            for p in range(h, h + n)
        ]
        self.layout = BatchLayout(
            page_size, int((new == 1).sum()), new, ends, np.concatenate(([0], np.cumsum(new))).astype(np.int32), table,
            torch.tensor(slots),
        )  # fmt: skip
        tokens = int(new.sum())
        joint = torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
        q, k, v = joint.split((heads * dim, kv_heads * dim, kv_heads * dim), -1)
        self.q, self.k, self.v = (
            q.view(tokens, heads, dim),
            k.view(tokens, kv_heads, dim),
            v.view(tokens, kv_heads, dim),
        )

    def plan(self) -> None:
        self.backend.plan(self.layout)

    def run(self) -> torch.Tensor:
        return self.backend.run(self.q, self.k, self.v, 0, self.kv)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    dtype = getattr(torch, given.dtype)
    cases: list[tuple[str, list[tuple[int, int]], int]] = [
        ("1 decode at 64", [(63, 1)], 0),
        ("1 decode at 192", [(191, 1)], 0),
        ("32 decodes at 128-256", [(127 + 4 * i, 1) for i in range(32)], 0),
        ("32 decodes at 256", [(255, 1)] * 32, 0),
        ("31 decodes at 200, 1 at 4000", [(199, 1)] * 31 + [(3999, 1)], 0),
        ("16 decodes at 1056", [(1055, 1)] * 16, 0),
        ("16 decodes at 1056, 1024 shared", [(1055, 1)] * 16, 1024),
        ("prefill 512", [(0, 512)], 0),
        ("prefill 2048", [(0, 2048)], 0),
        ("prefill 512 after 1536", [(1536, 512)], 0),
        ("prefill 32 after 1024", [(1024, 32)], 0),
        ("32 prefills of 64", [(0, 64)] * 32, 0),
    ]
    print(f"torch {torch.__version__}, {given.threads} threads, {given.dtype}, pages of {given.page_size}")
    print(f"{'shape':24} {'step':34} {'plan us':>9} {'layer us':>9}")
    with torch.inference_mode():
        for name, shape in SHAPES.items():
            for title, rows, shared in cases:
                case = Case(shape, rows, given.page_size, dtype, shared)
                plan_us = measure(case.plan)
                print(f"{name:24} {title:34} {plan_us:9.1f} {measure(case.run):9.1f}", flush=True)


if __name__ == "__main__":
    main()
