"""Stand-ins for the libraries: operators of their exact signatures, registered with torch, in plain PyTorch.

They check what the real ones check or rely on (types, strides, shapes, a schedule made for just this call), so that a
plan that would go wrong on a GPU fails here. A call's arguments are kept in `CALLS`, newest last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fa3_schemas import SGLANG, UPSTREAM, VLLM

from plugin_fa3.providers.base import Provider

CALLS: list[Call] = []
_LIBRARIES: dict[str, torch.library.Library] = {}


@dataclass
class Call:
    operator: str
    values: dict[str, Any]


def _named(schemas: dict[str, str], operator: str, args: tuple[Any, ...]) -> dict[str, Any]:
    arguments = torch._C.parse_schema(f"x::{schemas[operator]}").arguments
    values = {a.name: a.default_value for a in arguments if a.has_default_value()}
    values.update(zip((a.name for a in arguments), args, strict=False))
    CALLS.append(Call(operator, values))
    return values


def _register(namespace: str, schemas: dict[str, str]) -> None:
    if namespace in _LIBRARIES:
        return
    library = torch.library.Library(namespace, "DEF")
    for schema in schemas.values():
        library.define(schema)
    many = "Tensor[]" in schemas["fwd"]
    library.impl("fwd", partial(_fwd, schemas, many), "CompositeExplicitAutograd")
    library.impl("get_scheduler_metadata", partial(_schedule, schemas), "CompositeExplicitAutograd")
    _LIBRARIES[namespace] = library


def _schedule_of(v: dict[str, Any], batch: int, left: int, max_k: int, lengths: torch.Tensor) -> torch.Tensor:
    """What a schedule depends on. The real ones are as opaque; their size, too, follows from batch and window."""
    local = 0 <= left < max_k - 1
    head = [batch, v["max_seqlen_q"], max_k, v["num_splits"], left if local else -1, int(v["is_causal"])]
    if v["leftpad_k"] is not None:
        lengths = lengths - v["leftpad_k"]
    return torch.cat(
        [torch.tensor(head, dtype=torch.int32), lengths.int(), torch.zeros(3 if local else 4, dtype=torch.int32)]
    )


def _schedule(schemas: dict[str, str], *args: Any) -> torch.Tensor:
    v = _named(schemas, "get_scheduler_metadata", args)
    assert v["window_size_right"] == (0 if v["is_causal"] else -1)
    assert v["max_seqlen_k"] % v["page_size"] == 0
    assert v["qkv_dtype"] in (torch.bfloat16, torch.float16), v["qkv_dtype"]
    _int32(v, "seqused_k", "cu_seqlens_q")
    assert v["cu_seqlens_q"].shape == (v["batch_size"] + 1,)
    assert v["seqused_k"].shape == (v["batch_size"],)
    return _schedule_of(v, v["batch_size"], v["window_size_left"], v["max_seqlen_k"], v["seqused_k"])


def _int32(v: dict[str, Any], *names: str) -> None:
    for name in names:
        assert v[name].dtype == torch.int32, name
        assert v[name].is_contiguous(), name


def _fwd(schemas: dict[str, str], many: bool, *args: Any) -> Any:
    v = _named(schemas, "fwd", args)
    q, k, value, out = v["q"], v["k"], v["v"], v["out"]
    for x in (q, k, value, out):
        assert x.stride(-1) == 1
        assert x.dtype == q.dtype
        assert x.dtype in (torch.bfloat16, torch.float16)
    paged = v["page_table"] is not None
    cu_q = v["cu_seqlens_q"]
    _int32(v, "cu_seqlens_q")
    batch = len(cu_q) - 1
    assert (v["k_new"], v["seqused_q"], v["cu_seqlens_k_new"]) == (None,) * 3
    q_v = v["q_v"]
    assert q_v is None or (q_v.shape == (*q.shape[:2], value.shape[-1]) and q_v.stride(-1) == 1)
    assert q_v is None or (q.shape[-1] <= 64 and value.shape[-1] >= 256)
    assert v["window_size_right"] == (0 if v["is_causal"] else -1)
    skipped = v["leftpad_k"]
    assert skipped is None or (paged and skipped.dtype == torch.int32 and skipped.shape == (batch,))
    lse = torch.full((q.shape[1], q.shape[0]), float("nan"))
    assert out.shape == (*q.shape[:2], value.shape[-1])
    sinks = v.get("sinks", v.get("s_aux"))
    assert sinks is None or (sinks.dtype == torch.bfloat16 and sinks.shape == (q.shape[1],))
    if paged:
        table = v["page_table"]
        _int32(v, "seqused_k")
        assert table.dtype == torch.int32
        assert table.stride(-1) == 1
        assert table.shape[0] == len(v["seqused_k"]) == batch
        assert v["cu_seqlens_k"] is None
        ends = v["seqused_k"].tolist()
        max_k = table.shape[1] * k.shape[1]
        metadata = v["scheduler_metadata"]
        if metadata is not None:
            want = _schedule_of(v, batch, v["window_size_left"], max_k, v["seqused_k"])
            assert torch.equal(metadata, want), "a schedule of another call"
    else:
        assert v["seqused_k"] is None
        assert v["scheduler_metadata"] is None
        _int32(v, "cu_seqlens_k")
        # The real kernels read whole tiles: rows behind a sequence are multiplied by zero, not left out.
        assert bool(torch.isfinite(k).all() and torch.isfinite(value).all()), "padding rows in reach of a tile"
        max_k = v["max_seqlen_k"]
    for i in range(batch):
        first, last = int(cu_q[i]), int(cu_q[i + 1])
        assert last - first <= v["max_seqlen_q"]
        if paged:
            size = k.shape[1]
            pages = table[i, : -(-ends[i] // size)].long()
            assert ends[i] <= max_k
            first_key = 0 if skipped is None else int(skipped[i])
            keys, values = (x[pages].flatten(0, 1)[first_key : ends[i]] for x in (k, value))
        else:
            a, b = int(v["cu_seqlens_k"][i]), int(v["cu_seqlens_k"][i + 1])
            assert b - a <= max_k
            keys, values = k[a:b], value[a:b]
        second = None if q_v is None else q_v[first:last]
        out[first:last], lse[:, first:last] = _attend(q[first:last], keys, values, v, sinks, second)
    empty = q.new_empty(0)
    return [out, lse, empty, empty] if many else (out, lse, empty, empty)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    value: torch.Tensor,
    v: dict[str, Any],
    sinks: torch.Tensor | None,
    q_v: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [M, H, D], k [L, Hkv, D]: the last M of L tokens attend to those before them, or M others to all L. Returns
    [M, H, D] and the logarithm of the sum of exponentials, [H, M]; zeros and minus infinity where L is 0."""
    groups = q.shape[1] // k.shape[1]
    keys, values = (x.float().repeat_interleave(groups, 1) for x in (k, value))
    scores = torch.einsum("mhd,lhd->hml", q.float(), keys)
    if q_v is not None:
        scores = scores + torch.einsum("mhd,lhd->hml", q_v.float(), values)
    scores = scores * v["softmax_scale"]
    if v["softcap"] > 0:
        scores = v["softcap"] * torch.tanh(scores / v["softcap"])
    at = torch.arange(len(k) - len(q), len(k))[:, None]
    seen = torch.arange(len(k))[None]
    hidden = (seen > at) & v["is_causal"]
    if v["window_size_left"] >= 0:
        hidden = hidden | (seen < at - v["window_size_left"])
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(-1, 1, 1).expand(-1, len(q), 1)], -1)
        return torch.einsum("hml,lhd->mhd", scores.softmax(-1)[..., :-1], values).to(q.dtype), scores.logsumexp(-1)
    return torch.einsum("hml,lhd->mhd", scores.softmax(-1), values).to(q.dtype), scores.logsumexp(-1)


class FakeSglang(Provider):
    name, install, package, library_pattern = "sglang", "sglang-kernel", "sgl_kernel", "flash_ops*.so"
    namespace, sinks_argument = "fake_fa3_sglang", "sinks"

    def _load(self) -> None:
        _register(self.namespace, SGLANG)


class FakeVllm(Provider):
    name, install, package, library_pattern = "vllm", "vllm", "vllm", "vllm_flash_attn/_vllm_fa3_C*.so"
    namespace, sinks_argument = "fake_fa3_vllm", "s_aux"

    def _load(self) -> None:
        _register(self.namespace, VLLM)


class FakeUpstream(Provider):
    name, install, package, library_pattern = "flash_attn", "flash_attn_3", "flash_attn_3", "_C*.so"
    namespace = "fake_fa3_upstream"

    def _load(self) -> None:
        _register(self.namespace, UPSTREAM)
