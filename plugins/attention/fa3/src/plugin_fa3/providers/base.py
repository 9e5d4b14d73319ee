"""Provider: a build of FlashAttention-3 that some distribution brings. One call shape for all of them."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from plugin_fa3.providers.binding import Binding, Partial

_ATTEND = (
    "q", "k", "v", "q_v", "out", "cu_seqlens_q", "cu_seqlens_k", "seqused_k", "max_seqlen_q", "max_seqlen_k",
    "page_table", "leftpad_k", "softmax_scale", "is_causal", "window_size_left", "window_size_right", "softcap",
    "scheduler_metadata", "num_splits", "pack_gqa",
)  # fmt: skip
_SCHEDULE = (
    "batch_size", "max_seqlen_q", "max_seqlen_k", "num_heads", "num_heads_k", "headdim", "headdim_v", "qkv_dtype",
    "seqused_k", "cu_seqlens_q", "leftpad_k", "page_size", "is_causal", "window_size_left", "window_size_right",
    "has_softcap", "num_splits", "pack_gqa",
)  # fmt: skip


class ProviderError(Exception):
    """A provider cannot be used on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The N sequences of one call.

    cu_q [N+1] int32: sequence i owns token rows cu_q[i]:cu_q[i+1]; need not begin with 0. max_q: most rows of one.
    lengths [N] int32 and page_table [N, P] int32: KV length and pages of each, in a call over pages; None where keys
    and values are the token rows themselves. max_k: no sequence has more keys; P * page_size over pages. skipped [N]
    int32: keys at the beginning of each that are left out. causal: the last row of a sequence is its newest token; else
    every row sees all keys.
    """

    cu_q: torch.Tensor
    max_q: int
    max_k: int
    lengths: torch.Tensor | None = None
    page_table: torch.Tensor | None = None
    skipped: torch.Tensor | None = None
    causal: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """What a layer asks of attention. window: keys that a token sees, itself included; None for all before it."""

    scale: float
    window: int | None = None
    softcap: float | None = None

    @property
    def left(self) -> int:
        """Keys before a token that it sees, as the kernels count them: -1 is no limit."""
        return -1 if self.window is None else self.window - 1


class Provider(ABC):
    """name: as in the setting `provider`. install: the distribution to install. package: its import package, of which
    `library_pattern` finds the shared library. namespace: of its operators in torch.ops. sinks_argument: of `fwd`, None
    if it has no attention sinks.
    """

    name: ClassVar[str]
    install: ClassVar[str]
    package: ClassVar[str]
    library_pattern: ClassVar[str]
    namespace: ClassVar[str]
    sinks_argument: ClassVar[str | None] = None

    def __init__(self) -> None:
        """Load the library and look at its operators. Raises ProviderError, UnknownSignature."""
        self._load()
        operators = getattr(torch.ops, self.namespace)
        sinks = () if self.sinks_argument is None else (self.sinks_argument,)
        fwd = operators.fwd.default
        self._fwd = Binding(fwd, fwd._schema, (*_ATTEND, *sinks))
        schedule = operators.get_scheduler_metadata.default
        self._schedule = Binding(schedule, schedule._schema, _SCHEDULE)

    @classmethod
    def library(cls) -> Path | None:
        """The shared library; None where the distribution is not installed. Imports nothing."""
        spec = importlib.util.find_spec(cls.package)
        folders = spec.submodule_search_locations if spec is not None else None
        for folder in folders or ():
            for path in sorted(Path(folder).glob(cls.library_pattern)):
                return path
        return None

    @abstractmethod
    def _load(self) -> None:
        """Make the operators known to torch."""

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        rows: Rows,
        rule: Rule,
        *,
        q_v: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
        num_splits: int = 1,
        metadata: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of the token rows of `rows` into the same rows of `out`. Returns [H, T] float32: the logarithm of
        the sum of exponentials that each row was divided by.

        q [T, H, D], out [T, H, Dv]; k, v [num_pages, page_size, Hkv, D or Dv] over pages, else [T, Hkv, D or Dv].
        q_v [T, H, Dv]: a second query, over values, so that a score is q . k + q_v . v. sinks [H]. num_splits: most
        parts of a sequence's keys, 0 lets the kernels choose. metadata: of `schedule` for the same rows, window,
        softcap and num_splits.
        """
        call = self.call(rows, rule, num_splits=num_splits, metadata=metadata, sinks=sinks, q_v=q_v)
        lse: torch.Tensor = call(q, k, v, out)[1]
        return lse

    def call(
        self,
        rows: Rows,
        rule: Rule,
        *,
        q_v: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
        num_splits: int = 1,
        metadata: torch.Tensor | None = None,
    ) -> Partial:
        """As `attend`, to be called with (q, k, v, out) by all layers that have the rest in common."""
        extra = {} if sinks is None else {str(self.sinks_argument): sinks.to(torch.bfloat16)}
        return self._fwd.partial(
            "q", "k", "v", "out",
            q_v=q_v, cu_seqlens_q=rows.cu_q, cu_seqlens_k=rows.cu_q if rows.page_table is None else None,
            seqused_k=rows.lengths, max_seqlen_q=rows.max_q,
            max_seqlen_k=rows.max_k, page_table=rows.page_table,
            leftpad_k=rows.skipped, softmax_scale=rule.scale,
            is_causal=rows.causal, window_size_left=rule.left, window_size_right=0 if rows.causal else -1,
            softcap=rule.softcap or 0.0, scheduler_metadata=metadata, num_splits=num_splits, pack_gqa=None,
            **extra,
        )  # fmt: skip

    def schedule(
        self,
        rows: Rows,
        rule: Rule,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        v_head_dim: int,
        page_size: int,
        dtype: torch.dtype,
        num_splits: int,
    ) -> torch.Tensor:
        """Which multiprocessor computes what, for a call over pages: computed once, used by every layer that shares
        window, softcap and sizes. A new tensor of int32, whose size follows from the number of sequences and `rule`."""
        assert rows.lengths is not None, "only calls over pages are scheduled ahead"
        made: torch.Tensor = self._schedule(
            batch_size=len(rows.lengths), max_seqlen_q=rows.max_q, max_seqlen_k=rows.max_k,
            num_heads=num_heads, num_heads_k=num_kv_heads, headdim=head_dim, headdim_v=v_head_dim, qkv_dtype=dtype,
            seqused_k=rows.lengths, cu_seqlens_q=rows.cu_q, leftpad_k=rows.skipped, page_size=page_size,
            is_causal=rows.causal, window_size_left=rule.left, window_size_right=0 if rows.causal else -1,
            has_softcap=rule.softcap is not None,
            num_splits=num_splits, pack_gqa=None,
        )  # fmt: skip
        return made
