"""Operations whose rows do not depend on what else is in the batch: always called with the same number of rows.

Kernels choose how they split and add by the shape of a call: a row of a matrix product has other last bits among 64
rows than alone. Here every call has the one shape: rows go through in tiles of a fixed number, the last one padded
with zeros, each tile in memory of its own. What is left to trust is that a kernel treats the rows of one shape alike,
wherever in the tile they are; `core.runner.invariance` tries that at start.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

TILE_ROWS = 16

# Operation -> arguments that have a row for each token. What is missing moves numbers without changing them.
_BY_TOKEN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "linear": ("x",),
        "rms_norm": ("x",),
        "add_rms_norm": ("x", "residual"),
        "qk_norm": ("x",),
        "rope": ("q", "k", "positions"),
        "qk_norm_rope": ("qkv", "positions"),
        "silu_and_mul": ("gate_up",),
        "gelu_and_mul": ("gate_up",),
        "topk_softmax": ("router_logits",),
        "route_topk": ("router_logits",),
    }
)
# Of the sampler: a row is a vocabulary, and each goes alone.
_BY_REQUEST: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gumbel_argmax": ("scaled", "spread", "keys"),
        "sampling_threshold": ("scaled", "top_k", "top_p", "min_p"),
        "token_logprobs": ("logits", "tokens"),
        "best_token": ("logits",),
    }
)
# What layers call instead of several others, where a device has it.
_WHOLE = ("fused_linear", "qk_norm_rope_store")


def fixed_rows(ops: Mapping[str, Callable[..., Any]], tile: int = TILE_ROWS) -> Mapping[str, Callable[..., Any]]:
    """`ops` with every operation that computes called on `tile` rows at a time; those of the sampler on one."""
    from core.ops.reference import REFERENCES

    table = dict(ops)
    # Layers then call the parts, each with its fixed shape.
    table |= {name: REFERENCES[name] for name in _WHOLE}
    for names, rows in ((_BY_TOKEN, tile), (_BY_REQUEST, 1)):
        for name, arguments in names.items():
            table[name] = _tiled(ops[name], inspect.signature(REFERENCES[name]), arguments, rows)
    return MappingProxyType(table)


def _tiled(
    op: Callable[..., Any], signature: inspect.Signature, names: tuple[str, ...], tile: int
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        num_rows = given[names[0]].shape[0]
        if not num_rows:
            return op(*args, **kwargs)
        # An argument without rows of its own (ids of a whole vocabulary) is the same for every tile.
        rowed = [name for name in names if not (name == "spread" and given[name].dim() == 1)]
        whole = {name: given[name] for name in rowed}
        parts = []
        for start in range(0, num_rows, tile):
            given |= {name: _tile(tensor, start, tile) for name, tensor in whole.items()}
            if "top_k" in given:
                given |= _known_on_host(given["top_k"], given["top_p"])
            parts.append(op(*bound.args, **bound.kwargs))
        if isinstance(parts[0], tuple):
            return tuple(_joined([part[i] for part in parts], num_rows) for i in range(len(parts[0])))
        return _joined(parts, num_rows)

    return run


def _tile(tensor: torch.Tensor, start: int, tile: int) -> torch.Tensor:
    """Rows `start` .. `start + tile` in memory of their own, whose alignment is always the same."""
    rows = tensor[start : start + tile]
    made = tensor.new_zeros((tile, *tensor.shape[1:]))
    made[: rows.shape[0]] = rows
    return made


def _joined(parts: list[torch.Tensor], num_rows: int) -> torch.Tensor:
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[:num_rows]


def _known_on_host(top_k: torch.Tensor, top_p: torch.Tensor) -> dict[str, Any]:
    """What `sampling_threshold` is told of its batch, for these rows alone."""
    return {
        "max_k": int(top_k.max()),
        "any_without_k": bool((top_k == 0).any()),
        "any_top_p": bool((top_p < 1.0).any()),
    }
