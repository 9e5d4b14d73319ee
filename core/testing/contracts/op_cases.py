"""Inputs for each named operation, to compare a device's implementation with core's reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from core.ops.sampling import spread_ids
from core.runner.noise import row_keys

Case = tuple[tuple[Any, ...], dict[str, Any]]
_ROWS = (0, 1, 3, 17)
_EPS = 1e-5


def op_cases(name: str, dtype: torch.dtype) -> Iterator[Case]:
    """(arguments, keyword arguments) on the host; none for a name that this module does not know. Operations that take
    a packed weight are given it as a weight: `called` packs it."""
    make = _CASES.get(name)
    for rows in _ROWS if make is not None else ():
        assert make is not None
        yield make(rows, dtype)


def called(table: Mapping[str, Callable[..., Any]], name: str, case: Case, device: torch.device) -> list[torch.Tensor]:
    """Call `name` of `table` on copies of the arguments; its tensors, or those it wrote if it returns nothing."""
    args = [arg.clone().to(device) if isinstance(arg, torch.Tensor) else arg for arg in case[0]]
    if name == "linear":
        args[1] = table["pack_linear_weight"](args[1])
    out = table[name](*args, **case[1])
    if out is None:
        out = tuple(args[2:4])  # store_kv writes its caches
    return [out] if isinstance(out, torch.Tensor) else list(out)


def _normal(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def _rotary(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Table [32, 8] for 8 rotated dims (cos, then sin), positions [rows]."""
    angle = torch.arange(32)[:, None] * 10.0 ** -torch.arange(4)
    return torch.cat((angle.cos(), angle.sin()), -1), torch.arange(rows) * 5 % 32


def _rope(rows: int, dtype: torch.dtype) -> Case:
    return (_normal(rows, 4, 16, dtype=dtype), _normal(rows, 2, 16, dtype=dtype, seed=1), *_rotary(rows)), {}


def _qk_norm_rope(rows: int, dtype: torch.dtype) -> Case:
    weights = (_normal(16, dtype=dtype, seed=1), _normal(16, dtype=dtype, seed=2))
    return (_normal(rows, 8, 16, dtype=dtype), (4, 2, 2), *weights, _EPS, *_rotary(rows)), {}


def _store_kv(rows: int, dtype: torch.dtype) -> Case:
    slots = torch.randperm(40, generator=torch.Generator().manual_seed(3))[:rows]
    caches = (torch.zeros(40, 2, 8, dtype=dtype), torch.zeros(40, 2, 4, dtype=dtype))
    return (_normal(rows, 2, 8, dtype=dtype), _normal(rows, 2, 4, dtype=dtype, seed=1), *caches, slots), {}


def _keys(rows: int) -> torch.Tensor:
    return torch.from_numpy(row_keys(np.arange(rows, dtype=np.uint64), np.full(rows, 7, np.int32)).copy())


def _gumbel(rows: int, dtype: torch.dtype) -> Case:
    return (_normal(rows, 300, dtype=torch.float32, scale=2), spread_ids(torch.arange(300)), _keys(rows)), {}


def _threshold(rows: int, dtype: torch.dtype) -> Case:
    index = torch.arange(rows)
    top_k, top_p, min_p = index * 5 % 40, 1.0 - (index % 3).double() * 0.2, 0.01 + (index % 2) * 0.05
    facts = {
        "max_k": int(top_k.max()) if rows else 0,
        "any_without_k": bool((top_k == 0).any()),
        "any_top_p": bool((top_p < 1).any()),
    }
    return (_normal(rows, 300, dtype=torch.float32, scale=2), top_k, top_p, min_p.float()), facts


def _penalize(rows: int, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(5)
    counts = torch.randint(0, 3, (rows, 50), generator=generator, dtype=torch.int32)
    prompt = torch.rand(rows, 50, generator=generator) < 0.2
    values = (torch.full((rows,), 1.3), torch.full((rows,), 0.5), torch.full((rows,), -0.25))
    return (_normal(rows, 50, dtype=torch.float32), counts, prompt, *values), {}


def _logprobs(rows: int, dtype: torch.dtype) -> Case:
    # Values without ties, so that the order of the alternatives is settled in any type.
    logits = torch.stack([torch.arange(40.0).roll(row) / 8 for row in range(rows)]) if rows else torch.zeros(0, 40)
    return (logits.to(dtype), torch.arange(rows) % 40, 5), {}


def _topk(rows: int, dtype: torch.dtype) -> Case:
    logits = torch.stack([torch.arange(16.0).roll(3 * row) / 4 for row in range(rows)]) if rows else torch.zeros(0, 16)
    return (logits.to(dtype), 4, True), {}


_CASES: Mapping[str, Callable[[int, torch.dtype], Case]] = {
    "linear": lambda rows, dtype: (
        (_normal(rows, 48, dtype=dtype), _normal(24, 48, dtype=dtype, seed=1), _normal(24, dtype=dtype, seed=2)), {},
    ),
    "rms_norm": lambda rows, dtype: ((_normal(rows, 64, dtype=dtype), _normal(64, dtype=dtype, seed=1), _EPS), {}),
    "add_rms_norm": lambda rows, dtype: (
        (
            _normal(rows, 64, dtype=dtype), _normal(rows, 64, dtype=dtype, seed=1), _normal(64, dtype=dtype, seed=2),
            _EPS,
        ), {},
    ),
    "qk_norm": lambda rows, dtype: ((_normal(rows, 4, 16, dtype=dtype), _normal(16, dtype=dtype, seed=1), _EPS), {}),
    "rope": _rope,
    "qk_norm_rope": _qk_norm_rope,
    "silu_and_mul": lambda rows, dtype: ((_normal(rows, 96, dtype=dtype),), {}),
    "gelu_and_mul": lambda rows, dtype: ((_normal(rows, 96, dtype=dtype),), {}),
    "topk_softmax": _topk,
    "store_kv": _store_kv,
    "embedding": lambda rows, dtype: ((torch.arange(rows) * 7 % 50, _normal(50, 32, dtype=dtype)), {}),
    "gumbel_argmax": _gumbel,
    "sampling_threshold": _threshold,
    "penalize": _penalize,
    "token_logprobs": _logprobs,
}  # fmt: skip
