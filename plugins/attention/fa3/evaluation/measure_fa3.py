"""Times FlashAttention-3 over pages on an NVIDIA H100 or H200, the way this plugin calls it.

    python measure_fa3.py [decode] [groups] [prefill] [store] [nan] [prefix] [latent]

Decodes are recorded in a CUDA graph of many calls, each over pages of its own, together larger than the L2 cache. What
is printed decides the plugin's page sizes and the rule in splits.py.
"""

from __future__ import annotations

import itertools
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from core.interfaces.attention import AttentionConfig, MlaWeights
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, StateKind
from plugin_fa3.backend import Fa3Attention
from plugin_fa3.providers.base import Provider, Rows, Rule
from plugin_fa3.providers.choose import choose
from plugin_fa3.settings import Settings
from plugin_fa3.store import store_for

HEAD_DIM, DEVICE, DTYPE = 128, torch.device("cuda"), torch.bfloat16
CONTEXT = 8192  # tokens that a row of the page table has room for, in recorded steps
L2_TIMES_FOUR = 256 << 20
PREFILL_HEADS = (32, 8)
PREFIXES = [(128, 4096, 160), (64, 4096, 160), (16, 4096, 160), (64, 1024, 304), (64, 0, 512), (256, 0, 1104)]
PREFILLS = [
    (8, 1024, 0), (1, 8192, 0), (2, 8192, 0), (16, 128, 4096), (128, 128, 4096), (4, 2048, 2048), (1, 16, 8000),
]  # fmt: skip


def timed(graph: torch.cuda.CUDAGraph, calls: int, repeats: int = 5) -> float:
    """Microseconds a call, the median of `repeats` replays."""
    graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in events)[repeats // 2] * 1e3 / calls


def record(call: Callable[[int], object], calls: int) -> torch.cuda.CUDAGraph:
    call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(calls):
            call(index)
    return graph


@dataclass
class Pool:
    """One stretch of memory that stands for the KV of all layers; pages of any size are views of it."""

    k: torch.Tensor
    v: torch.Tensor

    @classmethod
    def make(cls, tokens: int, num_kv_heads: int) -> Pool:
        shape = (tokens, num_kv_heads, HEAD_DIM)
        return cls(
            torch.empty(shape, dtype=DTYPE, device=DEVICE).normal_(),
            torch.empty(shape, dtype=DTYPE, device=DEVICE).normal_(),
        )

    def pages(self, page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(x[: len(x) // page_size * page_size].view(-1, page_size, *x.shape[1:]) for x in (self.k, self.v))  # type: ignore[return-value]


def decode_us(
    provider: Provider, pool: Pool, batch: int, context: int, heads: tuple[int, int], page_size: int, splits: int,
    *, metadata: bool, wide: bool,
) -> float:  # fmt: skip
    kv_bytes = 2 * batch * context * heads[1] * HEAD_DIM * 2
    pages_each = -(-context // page_size)
    calls = max(4, min(256, L2_TIMES_FOUR // kv_bytes))
    calls = min(calls, (len(pool.k) // page_size) // (batch * pages_each))
    k, v = pool.pages(page_size)
    order = torch.randperm(k.shape[0], device=DEVICE, dtype=torch.int32)[: calls * batch * pages_each]
    width = max(pages_each, CONTEXT // page_size if wide else 0)
    tables = torch.zeros(calls, batch, width, dtype=torch.int32, device=DEVICE)
    tables[:, :, :pages_each] = order.view(calls, batch, pages_each)
    lengths = torch.full((batch,), context, dtype=torch.int32, device=DEVICE)
    cu_q = torch.arange(batch + 1, dtype=torch.int32, device=DEVICE)
    q = torch.randn(batch, heads[0], HEAD_DIM, dtype=DTYPE, device=DEVICE)
    out, rule = torch.empty_like(q), Rule(HEAD_DIM**-0.5)
    rows = [Rows(cu_q, 1, width * page_size, lengths, table) for table in tables]
    plan = None
    if metadata:
        plan = provider.schedule(
            rows[0], rule, num_heads=heads[0], num_kv_heads=heads[1], head_dim=HEAD_DIM, v_head_dim=HEAD_DIM,
            page_size=page_size, dtype=DTYPE, num_splits=splits,
        )  # fmt: skip

    def call(index: int) -> None:
        provider.attend(q, k, v, out, rows[index], rule, num_splits=splits, metadata=plan)

    return timed(record(call, calls), calls)


VARIANTS: dict[str, tuple[int, bool, bool]] = {  # name: num_splits, metadata, wide table
    "0": (0, False, False), "0wM": (0, True, True), "1": (1, False, True), "1M": (1, True, True), "2M": (2, True, True),
    "4M": (4, True, True), "8M": (8, True, True), "16M": (16, True, True), "32M": (32, True, True),
}  # fmt: skip


def decode_table(
    provider: Provider,
    pool: Pool,
    heads: tuple[int, int],
    batches: list[int],
    contexts: list[int],
    page_sizes: dict[int, list[str]],
) -> None:
    names = list(VARIANTS)
    print(f"\ndecode, {heads[0]} heads over {heads[1]} KV heads of {HEAD_DIM}: us (GB/s of keys and values)")
    print("  batch context page  " + "".join(f"{name:>14}" for name in names))
    for (page_size, some), batch, context in itertools.product(page_sizes.items(), batches, contexts):
        kv_bytes = 2 * batch * context * heads[1] * HEAD_DIM * 2
        cells = []
        for name in names:
            splits, metadata, wide = VARIANTS[name]
            if name not in some:
                cells.append(f"{'':>14}")
                continue
            us = decode_us(provider, pool, batch, context, heads, page_size, splits, metadata=metadata, wide=wide)
            cells.append(f"{us:8.1f} ({kv_bytes / us / 1e3:4.0f})")
        print(f"  {batch:5d} {context:7d} {page_size:4d}  " + "".join(cells), flush=True)


def prefill_runs(provider: Provider, pool: Pool, count: int, new: int, old: int) -> dict[str, Callable[[], object]]:
    """Ways to compute `count` sequences of `new` tokens after `old`: fresh keys, or pages of some size."""
    tokens, each_long, (heads, kv_heads) = count * new, new + old, PREFILL_HEADS
    qkv = torch.randn(tokens, heads + 2 * kv_heads, HEAD_DIM, dtype=DTYPE, device=DEVICE)
    q, k_new, v_new = qkv.split((heads, kv_heads, kv_heads), 1)
    out = torch.empty(tokens, heads, HEAD_DIM, dtype=DTYPE, device=DEVICE)
    cu_q = torch.arange(count + 1, dtype=torch.int32, device=DEVICE) * new
    rule = Rule(HEAD_DIM**-0.5)
    runs: dict[str, Callable[[], object]] = {}
    if not old:
        fresh = Rows(cu_q, new, new)
        runs["slices"] = partial(provider.attend, q, k_new, v_new, out, fresh, rule)
        runs["fresh"] = partial(
            provider.attend, q.contiguous(), k_new.contiguous(), v_new.contiguous(), out, fresh, rule
        )
    lengths = torch.full((count,), each_long, dtype=torch.int32, device=DEVICE)
    for page_size, splits in ((16, 1), (16, 0), (64, 1), (128, 1)):
        k, v = pool.pages(page_size)
        each = -(-each_long // page_size)
        table = torch.randperm(k.shape[0], device=DEVICE, dtype=torch.int32)[: count * each].view(count, each)
        rows = Rows(cu_q, new, each * page_size, lengths, table)
        runs[f"p{page_size}s{splits}"] = partial(provider.attend, q, k, v, out, rows, rule, num_splits=splits)
    slots = torch.randperm(len(pool.k), device=DEVICE)[:tokens]
    runs["gather"] = partial(torch.index_select, pool.k, 0, slots)
    return runs


def prefill_table(provider: Provider, pool: Pool, cases: list[tuple[int, int, int]]) -> None:
    print("\nprefill, 32 heads over 8: ms (TFLOP/s)")
    for count, new, old in cases:
        flop = 4 * PREFILL_HEADS[0] * HEAD_DIM * count * (new * old + new * new / 2)
        line = f"  {count:4d} x {new} after {old}: "
        for name, run in prefill_runs(provider, pool, count, new, old).items():
            us = timed(record(lambda _, run=run: run(), 5), 5, 3)  # type: ignore[misc]
            line += f"{name} {us / 1e3:.3f} ({flop / us / 1e6:.0f})  "
        print(line, flush=True)


def store_table(pool: Pool) -> None:
    print("\nstore of K and V, 8 heads of 128 in slices of a wider matrix: us")
    for tokens in (1, 64, 256, 8192):
        qkv = torch.randn(tokens, 48, HEAD_DIM, dtype=DTYPE, device=DEVICE)
        new = qkv[:, 32:40], qkv[:, 40:]
        slots = torch.randperm(len(pool.k), device=DEVICE)[:tokens]
        one = partial(store_for(slots.device), *new, *pool.pages(16), slots)
        two = [partial(x.index_copy_, 0, slots, y) for x, y in zip((pool.k, pool.v), new, strict=True)]
        fused = timed(record(lambda _, one=one: one(), 50), 50)  # type: ignore[misc]
        plain = timed(record(lambda _, two=two: [copy() for copy in two], 50), 50)  # type: ignore[misc]
        print(f"  {tokens:5d} tokens: one launch {fused:.1f}, index_copy_ twice {plain:.1f}", flush=True)


def nan_table(provider: Provider) -> None:
    """Whether not-a-number behind a sequence's last token is left out, by page size and head size."""
    print("\nnot-a-number behind the last token: result finite?")
    for head_dim, window, page_size, new in itertools.product(
        (64, 128, 256), (None, 100), (16, 32, 64, 128, 256), (1, 200)
    ):
        length = new + 300
        each = -(-length // page_size)
        k = torch.full((each + 1, page_size, 2, head_dim), float("nan"), dtype=DTYPE, device=DEVICE)
        v = k.clone()
        table = torch.arange(1, each + 1, dtype=torch.int32, device=DEVICE)[None]
        for x in (k, v):
            x[1:].view(-1, 2, head_dim)[:length] = torch.randn(length, 2, head_dim, dtype=DTYPE, device=DEVICE)
        q = torch.randn(new, 8, head_dim, dtype=DTYPE, device=DEVICE)
        out = torch.empty_like(q)
        cu_q = torch.tensor([0, new], dtype=torch.int32, device=DEVICE)
        lengths = torch.tensor([length], dtype=torch.int32, device=DEVICE)
        provider.attend(
            q, k, v, out, Rows(cu_q, new, each * page_size, lengths, table), Rule(1 / math.sqrt(head_dim), window)
        )
        if not bool(torch.isfinite(out).all()):
            print(f"  head {head_dim} window {window} page {page_size} new {new}: NOT finite")
    print("  (all others are)", flush=True)


def backend_decode_us(shared: int, own: int, rows: int, *, prefixes: bool, layers: int = 8) -> float:
    """Microseconds a layer of the backend's own recorded decodes: `rows` sequences of `own` tokens after `shared` that
    all have in common (pages of 16), 32 heads over 8."""
    spec = AttentionSpec(num_heads=32, num_kv_heads=8, head_dim=HEAD_DIM, scale=HEAD_DIM**-0.5, v_head_dim=HEAD_DIM)
    names = tuple(range(layers))
    group = CacheGroupSpec("kv", StateKind.FULL, names, num_kv_heads=8, head_dim=HEAD_DIM, v_head_dim=HEAD_DIM)
    first, each = shared // 16, -(-own // 16)
    pages = 1 + first + rows * each
    config = AttentionConfig(
        group=group, layers=dict.fromkeys(names, spec), num_heads=32, num_kv_heads=8, page_size=16, num_pages=pages,
        dtype=DTYPE, device=torch.device("cuda", 0), max_seqs=rows, max_tokens=8192, context_length=CONTEXT,
    )  # fmt: skip
    backend = Fa3Attention(config, PluginContext(settings=Settings(shared_prefixes=prefixes)))
    kv = backend.allocate()
    for pair in kv.values():
        for x in pair:
            x.normal_()
    numbers = np.random.default_rng(0).permutation(np.arange(1, pages)).astype(np.int32)
    table = np.concatenate([np.tile(numbers[:first], (rows, 1)), numbers[first:].reshape(rows, each)], 1)
    lens, cu = np.full(rows, shared + own, np.int32), np.arange(rows + 1, dtype=np.int32)
    wide = np.zeros((rows, CONTEXT // 16), np.int32)
    wide[:, : table.shape[1]] = table
    slots = torch.from_numpy(table[:, -1].astype(np.int64) * 16).to(DEVICE)
    layout = BatchLayout(
        page_size=16, num_decodes=rows, q_lens=np.ones(rows, np.int32), seq_lens=lens, cu_q_lens=cu, page_table=table,
        slot_mapping=slots, device_page_table=torch.from_numpy(wide).to(DEVICE),
        device_seq_lens=torch.from_numpy(lens).to(DEVICE), device_cu_q_lens=torch.from_numpy(cu).to(DEVICE),
        captured=True,
    )  # fmt: skip
    q = torch.randn(rows, 32, HEAD_DIM, dtype=DTYPE, device=DEVICE)
    layout.variant = backend.variant(layout)
    backend.plan(layout)
    calls = 4 * layers
    return timed(record(lambda index: backend.run(q, None, None, index % layers, kv[index % layers]), calls), calls)


def prefix_table() -> None:
    print("\nrecorded decodes through the backend: us a layer, prefixes read once / not")
    for rows, shared, own in PREFIXES:
        times = [backend_decode_us(shared, own, rows, prefixes=prefixes) for prefixes in (True, False)]
        print(f"  {rows:4d} rows, {shared} in common, {own} own: {times[0]:.1f} / {times[1]:.1f}", flush=True)


def latent_us(rows: int, new: int, old: int, *, heads: int = 20, layers: int = 8) -> float:
    """Microseconds a layer of latent attention through the backend, projections included; GLM-4.7-Flash's sizes.
    Decodes (new = 1) as in a recorded step."""
    spec = AttentionSpec(heads, 1, head_dim=256, scale=1 / 16, v_head_dim=256, latent_dim=512, rope_dim=64)
    names = tuple(range(layers))
    group = CacheGroupSpec("kv", StateKind.MLA_LATENT, names, num_kv_heads=1, head_dim=512, v_head_dim=64)
    each = -(-(new + old) // 16)
    config = AttentionConfig(
        group=group, layers=dict.fromkeys(names, spec), num_heads=heads, num_kv_heads=1, page_size=16,
        num_pages=1 + rows * each, dtype=DTYPE, device=torch.device("cuda", 0), max_seqs=rows, max_tokens=rows * new,
        context_length=CONTEXT,
    )  # fmt: skip
    backend = Fa3Attention(config, PluginContext(settings=Settings()))
    kv = backend.allocate()
    for pair in kv.values():
        for x in pair:
            x.normal_()
    table = np.random.default_rng(0).permutation(np.arange(1, 1 + rows * each)).astype(np.int32).reshape(rows, each)
    lens, cu = np.full(rows, new + old, np.int32), np.arange(rows + 1, dtype=np.int32) * new
    wide = np.zeros((rows, CONTEXT // 16), np.int32)
    wide[:, :each] = table
    positions = np.tile(np.arange(old, old + new), rows)
    owners = np.repeat(np.arange(rows), new)
    slots = table[owners, positions // 16].astype(np.int64) * 16 + positions % 16
    layout = BatchLayout(
        page_size=16, num_decodes=rows if new == 1 else 0, q_lens=np.full(rows, new, np.int32), seq_lens=lens,
        cu_q_lens=cu, page_table=table, slot_mapping=torch.from_numpy(slots).to(DEVICE),
        device_page_table=torch.from_numpy(wide).to(DEVICE), device_seq_lens=torch.from_numpy(lens).to(DEVICE),
        device_cu_q_lens=torch.from_numpy(cu).to(DEVICE), captured=new == 1,
    )  # fmt: skip

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=DTYPE, device=DEVICE)

    tokens = rows * new
    parts = random(tokens, heads, 192), random(tokens, heads, 64), random(tokens, 512), random(tokens, 64)
    weights = MlaWeights(random(heads, 192, 512) / 22, random(heads, 256, 512) / 22)
    backend.plan(layout)
    calls = 2 * layers
    return timed(record(lambda i: backend.run_mla(*parts, weights, i % layers, kv[i % layers]), calls), calls)


def latent_table() -> None:
    print("\nlatent attention through the backend, 20 heads: us a layer")
    for rows, new, old in ((1, 1, 1023), (1, 1, 4095), (64, 1, 1023), (64, 1, 4095), (8, 1024, 0), (4, 512, 4096)):
        print(f"  {rows:4d} x {new} after {old}: {latent_us(rows, new, old):.1f}", flush=True)


def main() -> None:
    which = sys.argv[1:] or ["nan", "store", "prefill", "prefix", "latent", "decode", "groups"]
    provider = choose("auto", sinks=False)
    print(torch.cuda.get_device_name(), torch.__version__, provider.install)
    torch.manual_seed(0)
    pool = Pool.make(256 * 4096 * 2, 8)
    few = ["0", "0wM", "1M", "16M"]
    sizes = {16: list(VARIANTS), 64: few, 128: few}
    halves = Pool(pool.k.view(-1, 4, HEAD_DIM), pool.v.view(-1, 4, HEAD_DIM))
    parts: dict[str, Callable[[], None]] = {
        "nan": partial(nan_table, provider),
        "store": partial(store_table, pool),
        "prefill": partial(prefill_table, provider, pool, PREFILLS),
        "decode": partial(decode_table, provider, pool, (32, 8), [1, 16, 64, 128, 256], [128, 1024, 4096], sizes),
        "prefix": prefix_table,
        "latent": latent_table,
        "groups": partial(decode_table, provider, halves, (32, 4), [1, 64, 256], [1024], {16: list(VARIANTS)}),
    }
    for name in which:
        try:
            parts[name]()
        except Exception:
            traceback.print_exc()


if __name__ == "__main__":
    main()
