"""AttentionBackend: attention of one cache group over the paged KV cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, StateKind

if TYPE_CHECKING:
    import torch

    from core.interfaces.batch import BatchLayout


@dataclass(frozen=True, slots=True)
class AttentionCapabilities:
    """What a backend can do, as data: selection reads it, the contract suite tests just what it claims.

    page_sizes: accepted sizes, or None for any. head_dims: accepted, or None for any.
    hardware: names of hardware plugins it runs on, or None for any.
    """

    state_kinds: frozenset[StateKind] = frozenset({StateKind.FULL})
    page_sizes: tuple[int, ...] | None = None
    head_dims: tuple[int, ...] | None = None
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    kv_dtypes: tuple[str, ...] = ("auto",)
    hardware: tuple[str, ...] | None = None
    softcap: bool = False
    sinks: bool = False
    tree_mask: bool = False
    graph: bool = False
    batch_invariant: bool = False


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """What a backend instance is built for: one cache group on one rank.

    num_heads, num_kv_heads: of this rank. layers: AttentionSpec of each layer in the group, by layer index.
    """

    group: CacheGroupSpec
    layers: dict[int, AttentionSpec]
    num_heads: int
    num_kv_heads: int
    page_size: int
    num_pages: int
    dtype: torch.dtype
    device: torch.device
    max_seqs: int
    max_tokens: int
    context_length: int


class AttentionBackend(ABC):
    """Attention over paged KV for the layers of one cache group.

    Life of a step: `plan` once on the host, then `run` for each layer. A backend may split the batch
    (decodes, prefills) as it likes; it must not keep references to the planned layout past the next plan.
    Page 0 is a null page: it is never given to a request, so padding rows may write and read it.
    """

    capabilities: ClassVar[AttentionCapabilities]

    def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
        self.config = config
        self.ctx = ctx

    @classmethod
    def rejects(cls, config: AttentionConfig) -> str | None:
        """Why this backend cannot serve `config` beyond what `capabilities` says, or None."""
        return None

    @abstractmethod
    def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
        """The KV buffers of every layer in the group, by layer index, in this backend's own layout.
        Must take `num_pages * page_size` tokens a layer and no more than spec'd bytes (elements_per_token)."""

    @abstractmethod
    def plan(self, layout: BatchLayout) -> None:
        """Prepare for this step. Host work only; may copy into persistent device buffers."""

    @abstractmethod
    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write this step's k, v into `kv` at the layout's slots, then attend.

        q [T, num_heads, head_dim], k [T, num_kv_heads, head_dim], v [T, num_kv_heads, v_head_dim], rotated.
        k and v are None when a fused op has stored them already. sinks [num_heads] or None.
        Returns [T, num_heads, v_head_dim]. Token t of sequence i sees keys at positions <= its own, within
        the layer's window.
        """
