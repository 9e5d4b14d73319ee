"""Drawing tokens on the GPU: the distribution, seeds, filters equal to the reference, and what the filters cost."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from core.interfaces.params import SamplingParams
from core.ops.reference import REFERENCES
from core.ops.sampling import spread_ids
from core.ops.table import build_ops
from tests.gpu.engines import ON_CPU, demo_prompts, engine, gpu_only, need_attention, say

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
Ops = Mapping[str, Callable[..., Any]]
# The sum over cells of (seen - expected)^2 / expected is chi-square; beyond this by chance once in a million runs.
ONCE_IN = 1e-6


@pytest.fixture
def ops() -> Ops:
    """Triton's operations; where the CPU stands in, in its interpreter if TRITON_INTERPRET=1, else core's own."""
    pytest.importorskip("triton")
    if ON_CPU and not INTERPRETED:
        return REFERENCES
    from core.interfaces.context import PluginContext
    from plugin_triton.ops import threshold
    from plugin_triton.ops.table import TritonOps

    if ON_CPU:
        threshold._PROGRAMS = 4  # the interpreter runs one after the other
    return build_ops(TritonOps(PluginContext()).ops())


def quantile(cells: int) -> float:
    """Of chi-square with cells - 1 degrees of freedom, by Wilson and Hilferty's approximation."""
    free, z = cells - 1, 4.7534  # of the normal distribution at 1 - ONCE_IN
    return float(free * (1 - 2 / (9 * free) + z * math.sqrt(2 / (9 * free))) ** 3)


def chi_square(seen: Mapping[int, int], shares: torch.Tensor) -> tuple[float, float]:
    """(the sum, what it may be). shares [V]; cells with fewer than 10 expected are counted as one."""
    total = sum(seen.values())
    expected = shares.double() * total
    cells, rest_seen, rest_expected, value = 0, 0.0, 0.0, 0.0
    for token, want in enumerate(expected.tolist()):
        count = seen.get(token, 0)
        if want < 10:
            rest_seen, rest_expected = rest_seen + count, rest_expected + want
            continue
        value, cells = value + (count - want) ** 2 / want, cells + 1
    if rest_expected >= 10:
        value, cells = value + (rest_seen - rest_expected) ** 2 / rest_expected, cells + 1
    else:
        assert rest_seen <= 30 + rest_expected, "tokens come that should hardly ever"
    assert cells > 3, "the distribution is too narrow to say anything"
    return value, quantile(cells)


@pytest.mark.parametrize("size", [33, 1000])
def test_draws_have_the_distribution(ops: Ops, size: int, device: torch.device) -> None:
    rng = torch.Generator().manual_seed(size)
    logits = (torch.randn(size, generator=rng) * 2).to(device)
    spread = spread_ids(torch.arange(size, device=device))
    seen: Counter[int] = Counter()
    rows, rounds = (300, 4) if INTERPRETED else (2000, 5) if ON_CPU else (20_000, 25)
    for _ in range(rounds):
        keys = torch.randint(-(2**31), 2**31, (rows, 2), generator=rng).to(torch.int32).to(device)
        tokens = ops["gumbel_argmax"](logits.expand(rows, -1).contiguous(), spread, keys)
        seen.update(tokens.tolist())
    value, limit = chi_square(seen, logits.softmax(0).cpu())
    say(f"{rows * rounds} draws of {size}: chi-square {value:.1f}, at most {limit:.1f}")
    assert value < limit


def test_a_seed_draws_the_same_on_every_device(ops: Ops, device: torch.device) -> None:
    """The hash is integers; the two logarithms behind it may differ in the last place."""
    rng = torch.Generator().manual_seed(3)
    rows, size = (20, 500) if INTERPRETED else (200, 5000)
    logits = torch.randn(rows, size, generator=rng) * 3
    keys = torch.randint(-(2**31), 2**31, (rows, 2), generator=rng).to(torch.int32)
    spread = spread_ids(torch.arange(size))
    want = REFERENCES["gumbel_argmax"](logits.clone(), spread, keys)
    got = ops["gumbel_argmax"](logits.to(device), spread.to(device), keys.to(device)).cpu()
    again = ops["gumbel_argmax"](logits.to(device), spread.to(device), keys.to(device)).cpu()
    assert torch.equal(got, again)
    assert int((got != want).sum()) <= 1


def cases(rows: int, size: int, device: torch.device, filters: str, spread: float) -> tuple[tuple[Any, ...], dict]:
    """Arguments of sampling_threshold. filters: of "k", "p", "m", those that some rows have; or "qwen": top-k 20 and
    top-p 0.95 in all rows, what the generation settings of Qwen's models say."""
    rng = torch.Generator().manual_seed(rows * 7 + size)
    scaled = (torch.randn(rows, size, generator=rng) * spread).to(device)

    def chosen(values: list[float], on: bool, off: float, dtype: torch.dtype) -> torch.Tensor:
        picked = torch.tensor(values)[torch.randint(len(values), (rows,), generator=rng)]
        return (picked if on else torch.full((rows,), off)).to(dtype).to(device)

    top_k = chosen([0, 1, 3, 50, 1000], "k" in filters, 0, torch.int64)
    top_p = chosen([1.0, 0.1, 0.5, 0.95], "p" in filters, 1.0, torch.float64)
    min_p = chosen([0.0, 0.05, 0.3], "m" in filters, 0.0, torch.float32)
    if filters == "qwen":
        top_k, top_p, min_p = (torch.full_like(x, to) for x, to in ((top_k, 20), (top_p, 0.95), (min_p, 0.0)))
    known = {
        "max_k": int(top_k.max()), "any_without_k": bool((top_k == 0).any()), "any_top_p": bool((top_p < 1).any()),
    }  # fmt: skip
    return (scaled, top_k, top_p, min_p), known


@pytest.mark.parametrize("filters", ["k", "p", "m", "kpm", "qwen"])
@pytest.mark.parametrize(("rows", "size"), [(1, 128_256), (16, 128_256), (64, 128_256), (256, 128_256), (130, 1000)])
def test_filters_keep_what_the_reference_keeps(
    ops: Ops, rows: int, size: int, filters: str, device: torch.device
) -> None:
    if ON_CPU:
        rows, size = min(rows, 3), min(size, 300)
    for spread in (1.0, 3.0):
        args, known = cases(rows, size, device, filters, spread)
        got = ops["sampling_threshold"](*(arg.clone() for arg in args), **known)
        want = REFERENCES["sampling_threshold"](*(arg.clone() for arg in args), **known)
        off = rows_on_the_edge(args, got, want)
        say(f"filters {filters}, {rows} rows of {size}, spread {spread}: {rows - off} of {rows} rows equal")


def rows_on_the_edge(args: tuple[torch.Tensor, ...], got: torch.Tensor, want: torch.Tensor) -> int:
    """How many rows keep other tokens than the reference; fails unless these are few and both are right."""
    scaled, top_k, top_p, _ = args
    kept, wanted = ((scaled >= limit[:, None]).sum(1) for limit in (got, want))
    off = (kept != wanted).nonzero().flatten().tolist()
    for row in off:
        assert_on_the_edge(scaled[row], float(top_p[row]), int(top_k[row]), float(got[row]), float(want[row]))
    assert len(off) <= len(scaled) // 100, "on the edge by chance, but not so often"
    return len(off)


def assert_on_the_edge(row: torch.Tensor, top_p: float, top_k: int, got: float, want: float) -> None:
    """Both thresholds are right if the share of top-p ends, within the errors of float32, between their tokens."""
    weights = (row.double() - row.double().max()).exp()
    if top_k:
        weights = weights.masked_fill(row < row.topk(min(top_k, len(row))).values[-1], 0.0)
    share = weights / weights.sum()
    above = float(share[row > max(got, want)].sum())
    upto = float(share[row >= max(got, want)].sum())
    off = min(abs(above - top_p), abs(upto - top_p))
    assert top_p < 1.0, (got, want)
    assert off < 2e-6, f"threshold {got}, not {want}: the share ends {off:.2g} away"


def test_first_tokens_of_many_seeds_have_the_models_distribution() -> None:
    """Through the whole engine: one prompt, thousands of seeds, against the log-probabilities that it tells."""
    count = 400 if ON_CPU else 6000
    with engine(
        dtype="float32", attention_backend=need_attention("triton"), max_running_requests=64, max_total_tokens=16384,
        context_length=256,
    ) as made:  # fmt: skip
        firsts = made.generate(demo_prompts(), SamplingParams(temperature=0.0, max_tokens=1, logprobs=64))
        # Of the prompts the one behind which most is possible.
        prompt, told = min(
            ((prompt, first.logprobs or []) for prompt, first in zip(demo_prompts(), firsts, strict=True)),
            key=lambda item: item[1][0].logprobs[0],
        )
        for temperature, top_k in ((1.0, 0), (2.0, 8)):
            drawn = SamplingParams(temperature=temperature, top_k=top_k or -1, max_tokens=1, ignore_eos=True)
            answers = made.generate([prompt] * count, drawn, list(range(count)))
            seen = Counter(answer.tokens[0] for answer in answers)
            shares = np.zeros(made.engine.engine.hello.vocab_size)
            known = np.exp(np.array(told[0].logprobs) / temperature)
            if top_k:
                known = known[:top_k]
            # At temperature 1 what the 64 best leave is spread over the others, as one cell.
            shares[told[0].ids[: len(known)]] = known / known.sum() if top_k else known
            if not top_k:
                others = np.setdiff1d(np.arange(len(shares)), told[0].ids)
                shares[others] = max(0.0, 1 - known.sum()) / len(others)
            value, limit = chi_square(seen, torch.from_numpy(shares))
            say(
                f"{count} first tokens, temperature {temperature}, top-k {top_k}: chi-square {value:.1f} <= {limit:.1f}"
            )
            assert value < limit
            assert not top_k or set(seen) <= set(told[0].ids[:top_k])
        again = made.generate([prompt] * 20, drawn, list(range(20)))
        assert [a.tokens for a in again] == [a.tokens for a in answers[:20]]


@pytest.mark.timed
def test_what_the_filters_cost(ops: Ops, device: torch.device) -> None:
    """Prints; recorded in a graph, so that the device's time counts. Fails only where a result is another."""
    size = 300 if ON_CPU else 128_256
    for filters in ("qwen", "kp", "p", "k"):
        for rows in (1, 4, 16, 64, 256)[: 2 if ON_CPU else None]:
            args, known = cases(rows, size, device, filters, 3.0)
            calls = [partial(table["sampling_threshold"], *args, **known) for table in (ops, REFERENCES)]
            rows_on_the_edge(args, *(call() for call in calls))
            ours, theirs = (microseconds(call) for call in calls)
            say(f"sampling_threshold {filters:4} {rows:4} rows of {size}: {ours:8.1f} us, torch {theirs:8.1f} us")


def microseconds(call: Callable[[], object]) -> float:
    """Of one call; on a GPU the best of five replays of a recording of four."""
    call()
    if ON_CPU:
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1e6
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(4):
            call()
    best = float("inf")
    for _ in range(5):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        best = min(best, first.elapsed_time(last))
    return best * 1e3 / 4


def test_the_rest_is_about_a_gpu() -> None:
    """Operations on the device are the ones that the engine takes."""
    gpu_only()
    with engine(max_total_tokens=1024, context_length=64, max_running_requests=2) as made:
        assert [choice.name for choice in made.resolution.ops] == ["triton"]
