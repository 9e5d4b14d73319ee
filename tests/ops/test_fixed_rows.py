"""Tiles: the same results, a fixed number of rows a call, and rows that do not mind their company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ops.fixed_rows import TILE_ROWS, fixed_rows
from core.ops.reference import REFERENCES

SIZES = st.integers(0, 3 * TILE_ROWS + 1)


def rows(count: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The first `count` rows of always the same."""
    return torch.randn(64, *shape, generator=torch.Generator().manual_seed(seed))[:count].to(dtype)


def arguments(name: str, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Some for each operation; rows i of different counts are equal."""
    positions, table = torch.arange(count), rows(64, 8, seed=3)
    keys = torch.arange(2 * count, dtype=torch.int32).view(count, 2)
    scaled = rows(count, 50)
    threshold = {"max_k": 4, "any_without_k": True, "any_top_p": True}
    top_k = torch.tensor([0, 4, 2])[positions % 3]
    top_p = torch.tensor([0.9, 1.0], dtype=torch.float64)[positions % 2]
    made: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "linear": ((rows(count, 24), rows(10, 24, seed=1), rows(10, 1, seed=2)[:, 0]), {}),
        "rms_norm": ((rows(count, 24), rows(24, 1, seed=1)[:, 0], 1e-5), {}),
        "add_rms_norm": ((rows(count, 24), rows(count, 24, seed=4), rows(24, 1, seed=1)[:, 0], 1e-5), {}),
        "qk_norm": ((rows(count, 3, 8), rows(8, 1, seed=1)[:, 0], 1e-5), {}),
        "rope": ((rows(count, 4, 8), rows(count, 2, 8, seed=1), table, positions), {"interleaved": True}),
        "qk_norm_rope": (
            (rows(count, 8, 8), (4, 2, 2), rows(8, 1, seed=1)[:, 0], None, 1e-5, table),
            {"positions": positions},
        ),
        "silu_and_mul": ((rows(count, 24),), {}),
        "gelu_and_mul": ((rows(count, 24), "tanh"), {}),
        "topk_softmax": ((rows(count, 24), 3, True), {}),
        "route_topk": ((rows(count, 24), None, 3), {"scoring": "sigmoid", "renormalize": True}),
        "gumbel_argmax": ((scaled, torch.arange(50, dtype=torch.int32), keys), {}),
        "sampling_threshold": ((scaled, top_k, top_p, torch.zeros(count)), threshold),
        "best_token": ((scaled,), {}),
        "token_logprobs": ((scaled, positions % 50, 4), {}),
    }
    return made[name]


NAMES = [name for name, op in fixed_rows(REFERENCES).items() if op is not REFERENCES[name]]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(count=SIZES, other=st.integers(1, 40))
def test_results_are_the_operations_own_and_do_not_depend_on_the_count(name: str, count: int, other: int) -> None:
    tiled = fixed_rows(REFERENCES)[name]
    args, kwargs = arguments(name, count)
    made = tiled(*args, **kwargs)
    args, kwargs = arguments(name, count)
    plain = REFERENCES[name](*args, **kwargs)
    for mine, theirs in zip(_all(made), _all(plain), strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs)
    few = min(count, other)
    args, kwargs = arguments(name, other)
    for mine, theirs in zip(_all(made), _all(tiled(*args, **kwargs)), strict=True):
        assert torch.equal(mine[:few], theirs[:few])


def test_every_call_has_the_same_rows_in_memory_of_its_own() -> None:
    seen: list[torch.Tensor] = []

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(x)
        return x @ weight.T

    x = rows(TILE_ROWS + 3, 8)
    fixed_rows({**REFERENCES, "linear": linear})["linear"](x, rows(4, 8))
    assert [tuple(tile.shape) for tile in seen] == [(TILE_ROWS, 8)] * 2
    assert all(tile.is_contiguous() and tile.data_ptr() != x.data_ptr() for tile in seen)
    assert not seen[1][3:].any()


def test_layers_are_left_with_the_parts() -> None:
    """What joins several operations would have another shape in each call."""
    own = {name: lambda *args: args for name in ("fused_linear", "qk_norm_rope_store")}
    tiled = fixed_rows({**REFERENCES, **own})
    assert all(tiled[name] is REFERENCES[name] for name in own)


def _all(value: Any) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
