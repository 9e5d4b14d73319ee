"""The threshold of top-k, top-p and min-p against the reference, which sorts: rows of every kind, all ways through the
kernels, and the same bits alone and among others."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from core.ops.sampling import sampling_threshold as reference
from plugin_triton.ops import threshold

# The interpreter's numpy warns of numbers that overflow to what they should be, infinity.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
NEG_INF = float("-inf")


def one_finite(size: int, rng: torch.Generator) -> torch.Tensor:
    row = torch.full((size,), NEG_INF)
    row[torch.randint(size, (1,), generator=rng)] = 2.5
    return row


def masked(size: int, rng: torch.Generator) -> torch.Tensor:
    """As under a grammar: few tokens are possible."""
    row = torch.randn(size, generator=rng) * 3
    return torch.where(torch.rand(size, generator=rng) < 0.98, NEG_INF, row).index_fill(0, torch.tensor([0]), 1.0)


def cluster(size: int, rng: torch.Generator) -> torch.Tensor:
    """The likely ones are neighbours, so few groups hold them all."""
    row = torch.randn(size, generator=rng)
    row[: size // 3] += 6
    return row


KINDS: dict[str, Callable[[int, torch.Generator], torch.Tensor]] = {
    "flat": lambda size, rng: torch.randn(size, generator=rng) * 0.05,
    "normal": lambda size, rng: torch.randn(size, generator=rng),
    "wide": lambda size, rng: torch.randn(size, generator=rng) * 3,
    "peaked": lambda size, rng: torch.randn(size, generator=rng) * 8,
    "bfloat16": lambda size, rng: (torch.randn(size, generator=rng) * 2).bfloat16().float(),
    "coarse": lambda size, rng: (torch.randn(size, generator=rng) * 2).round(),
    "two values": lambda size, rng: torch.randint(2, (size,), generator=rng).float(),
    "constant": lambda size, rng: torch.full((size,), -1.5),
    "cluster": cluster,
    "masked": masked,
    "one finite": one_finite,
}
TOP_K = (0, 1, 2, 20, 1000)
TOP_P = (1.0, 1e-6, 0.1, 0.5, 0.9, 0.95, 0.999999)
MIN_P = (0.0, 0.0, 0.05, 0.3)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one program after the other."""
    threshold._plan.cache_clear()
    if INTERPRETED:
        monkeypatch.setattr(threshold, "_PROGRAMS", 16)


def facts(top_k: torch.Tensor, top_p: torch.Tensor) -> dict[str, Any]:
    return {
        "max_k": int(top_k.max()), "any_without_k": bool((top_k == 0).any()), "any_top_p": bool((top_p < 1).any()),
    }  # fmt: skip


def both(scaled: torch.Tensor, *filters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    known = facts(filters[0], filters[1])
    args = [arg.to(DEVICE) for arg in (scaled, *filters)]
    return threshold.sampling_threshold(*args, **known).cpu(), reference(*args, **known).cpu()


def assert_equal(
    scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor, names: list[str]
) -> None:
    got, want = both(scaled, top_k, top_p, min_p)
    for row in (got != want).nonzero().flatten().tolist():
        what = f"{names[row]}: k {int(top_k[row])}, p {float(top_p[row])}, min-p {float(min_p[row])}"
        # Without top-k the whole mass is a sum of float32 exponentials, here numpy's and torch's: where the share ends
        # within their errors, one token more or less is as right.
        assert not top_k[row], f"{what}: {float(got[row])}, not {float(want[row])}"
        weights = (scaled[row].double() - scaled[row].double().max()).exp()
        share = weights / weights.sum()
        high = max(float(got[row]), float(want[row]))
        ends = float(share[scaled[row] > high].sum()), float(share[scaled[row] >= high].sum())
        off = min(abs(end - float(top_p[row])) for end in ends)
        assert off < 2e-7, f"{what}: {float(got[row])}, not {float(want[row])}; the share ends {off:.2g} away"


def picked(values: tuple[float, ...], rows: int, dtype: torch.dtype, rng: torch.Generator) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)[torch.randint(len(values), (rows,), generator=rng)]


def check(size: int, filters: str, seed: int, kinds: list[str] | None = None, top_k: tuple[int, ...] = TOP_K) -> None:
    """Each kind of row with filters of its own; filters: of "k", "p" and "m" those that some rows have."""
    rng = torch.Generator().manual_seed(seed * 1000 + size)
    names = kinds or list(KINDS)
    scaled = torch.stack([KINDS[name](size, rng) for name in names])
    assert_equal(
        scaled,
        picked(top_k if "k" in filters else (0,), len(names), torch.int64, rng),
        picked(TOP_P if "p" in filters else (1.0,), len(names), torch.float64, rng),
        picked(MIN_P if "m" in filters else (0.0,), len(names), torch.float32, rng),
        names,
    )


@pytest.mark.parametrize("filters", ["k", "p", "m", "kp", "kpm"])
@pytest.mark.parametrize("size", [1, 33, 1000, 4097])
def test_any_filters_of_any_rows(size: int, filters: str) -> None:
    check(size, filters, len(filters))


@pytest.mark.parametrize(("top_k", "top_p"), [(20, 0.95), (1, 0.5), (20, 0.1), (50, 1.0), (64, 0.999999), (20, 1e-6)])
def test_all_rows_with_a_small_top_k(top_k: int, top_p: float) -> None:
    """Groups are larger then: what nearly all requests ask for."""
    rng = torch.Generator().manual_seed(top_k)
    scaled = torch.stack([kind(4097, rng) for kind in KINDS.values()])
    rows = len(scaled)
    every_k, every_p = torch.full((rows,), top_k), torch.full((rows,), top_p, dtype=torch.float64)
    assert_equal(scaled, every_k, every_p, torch.zeros(rows), list(KINDS))


@pytest.mark.parametrize("top_k", [(0, 1500, 3000, 4097), (5000, 20)])
def test_a_top_k_of_half_the_vocabulary_or_more(top_k: tuple[int, ...]) -> None:
    """More than there are groups, and more than the buffer holds."""
    check(4097, "kp", 1, top_k=top_k)


@pytest.mark.parametrize("size", [50_257, 128_256, 151_936])
def test_vocabularies_of_models(size: int) -> None:
    check(size, "p", 2, ["wide", "normal", "peaked", "coarse"])
    check(size, "kp", 3, ["wide", "bfloat16", "masked"], top_k=(20,))


@pytest.mark.parametrize("filters", ["p", "kp"])
@pytest.mark.parametrize("capacity", [16, 64])
def test_more_candidates_than_the_buffer_holds(capacity: int, filters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threshold, "_CAPACITY", capacity)
    monkeypatch.setattr(threshold, "_LISTED", 64)
    check(1000, filters, capacity)


def test_groups_grow_with_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threshold, "_MAX_GROUPS", 32)
    assert threshold._group(1000, 100, False) == 32
    check(1000, "kp", 5)
    check(1000, "k", 6)


def test_a_row_is_the_same_alone_and_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs split rows otherwise, groups are others with other neighbours, and what is summed stays the same."""
    rng = torch.Generator().manual_seed(9)
    scaled = torch.stack([kind(4097, rng) for kind in KINDS.values()]).to(DEVICE)
    rows = len(scaled)
    top_k = picked((0, 0, 3, 20), rows, torch.int64, rng)
    top_p = picked((0.5, 0.9, 0.95), rows, torch.float64, rng)
    min_p = torch.zeros(rows)
    together = both(scaled, top_k, top_p, min_p)[0]
    for row in range(rows):
        one = slice(row, row + 1)
        for programs in (1, 8):
            monkeypatch.setattr(threshold, "_PROGRAMS", programs)
            alone = both(scaled[one], top_k[one], top_p[one], min_p[one])[0]
            assert torch.equal(alone, together[one]), f"{list(KINDS)[row]} in {programs} programs"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), NEG_INF])
def test_rows_that_are_not_usable_do_not_harm_others(bad: float) -> None:
    """Their own threshold does not matter; what they write must stay theirs, and nothing may go on for ever."""
    rng = torch.Generator().manual_seed(4)
    scaled = torch.randn(6, 1000, generator=rng)
    scaled[1, 17], scaled[3], scaled[4, ::2] = bad, bad, bad
    top_k, top_p = torch.tensor([20, 20, 20, 20, 0, 0]), torch.tensor([0.95] * 6, dtype=torch.float64)
    for k in (top_k, torch.zeros_like(top_k)):
        got, want = both(scaled, k, top_p, torch.zeros(6))
        for row in (0, 2, 5):
            assert got[row] == want[row]
        if bad == NEG_INF:
            assert torch.equal(got, want), "tokens that are impossible, in row 3 all of them"


def test_rows_in_wider_memory() -> None:
    """The first columns of a padded tensor."""
    rng = torch.Generator().manual_seed(8)
    scaled = torch.randn(3, 1100, generator=rng).to(DEVICE)[:, :1000]
    scaled_k = torch.tensor([0, 20, 3])
    got, want = both(scaled, scaled_k, torch.tensor([0.9, 0.95, 1.0], dtype=torch.float64), torch.zeros(3))
    assert torch.equal(got, want)
