"""AttentionBackend: attention of one cache group over the paged KV cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, StateKind

if TYPE_CHECKING:
    import torch

    from core.interfaces.batch import BatchLayout


# Types of a cache by the names that operators and capabilities use -> torch's names.
KV_DTYPES: Mapping[str, str] = {
    "bfloat16": "bfloat16",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}


@dataclass(frozen=True, slots=True)
class AttentionCapabilities:
    """What a backend can do, as data: selection reads it, the contract suite tests just what it claims.

    page_sizes: accepted sizes, or None for any. head_dims: accepted, or None for any.
    hardware: names of hardware plugins it runs on, or None for any.
    kv_dtypes: what the cache may keep; "auto" is the compute type, others are names in `KV_DTYPES`.
    graph: keeps what `plan` asks of captured layouts, so that a step may be recorded once and replayed.
    slot_dtype: integer type of the layout's slot_mapping, "int64" or "int32"; core builds what is asked for.
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
    slot_dtype: str = "int64"


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """What a backend instance is built for: one cache group on one rank.

    num_heads, num_kv_heads: of this rank. layers: AttentionSpec of each layer in the group, by layer index.
    kv_dtype: type of the cache, one that `capabilities.kv_dtypes` names; None: `dtype`. kv_scales: see `scales`.
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
    kv_dtype: torch.dtype | None = None
    kv_scales: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def cache_dtype(self) -> torch.dtype:
        """Type of the cache's elements."""
        return self.kv_dtype or self.dtype

    def scales(self, layer: int) -> tuple[float, float]:
        """Of a layer's keys and values; other than 1.0 only in a cache of eight bits. What is written is x / scale,
        within the type's range, and what is attended to, by this step's own tokens too, is the cached number times
        scale. Of latents the first one is for all of the row. They are known before the backend is built and stay as
        they are: plain numbers, that a recorded step may keep. A backend that claims a type of eight bits and cannot
        apply them says so in `rejects`."""
        if self.cache_dtype.itemsize > 1:
            return 1.0, 1.0
        return self.kv_scales.get(layer, (1.0, 1.0))


@dataclass(frozen=True, slots=True)
class MlaWeights:
    """How a latent becomes keys and values, on this rank; constant after loading, dense in the compute dtype.

    key [H, Dn, R]: k_nope = key @ latent. value [H, Dv, R]: v = value @ latent. H heads, Dn = head_dim - rope_dim,
    R = latent_dim, Dv = v_head_dim.
    """

    key: torch.Tensor
    value: torch.Tensor


# (keys [S, num_kv_heads, head_dim], values [S, num_kv_heads, v_head_dim], slots [T]): token t of the step belongs into
# row slots[t] of both. Any strides between rows; the heads of a row lie beside one another.
TokenRows = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]


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
    def unavailable(cls) -> str | None:
        """Why this machine cannot run it whatever the model (a library or a kind of device that it lacks), with the
        way out, or None. Asked when backends are chosen, in every process that chooses: quick, allocates nothing."""
        return None

    @classmethod
    def rejects(cls, config: AttentionConfig) -> str | None:
        """Why this backend cannot serve `config` beyond what `capabilities` says, or None."""
        return None

    @classmethod
    def page_bytes(cls, group: CacheGroupSpec, page_size: int, itemsize: int, tp_size: int) -> int:
        """Bytes that `allocate` takes for one page of `group` on one of `tp_size` ranks; the memory plan divides by
        it. itemsize: bytes of an element of the KV dtype. A layout with padding or scales says so here."""
        return group.elements_per_token(tp_size) * page_size * itemsize

    @abstractmethod
    def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
        """The KV buffers of every layer in the group, by layer index, in this backend's own layout.
        Must take `num_pages * page_size` tokens a layer and no more bytes than `page_bytes` says for each page."""

    def variant(self, layout: BatchLayout) -> int:
        """Which recorded form of a step of decodes this captured layout needs, decided on the host; 0 for padding rows
        alone. Core asks before each `plan` of such a layout, puts the answer into `layout.variant`, and records a step
        for each number of rows and variant: 0 at the start, others when a step first asks for them. `plan` and `run`
        follow `layout.variant`. For what changes launches and is rarely needed: every variant is a recording."""
        return 0

    @abstractmethod
    def plan(self, layout: BatchLayout) -> None:
        """Prepare for this step. Host work only; may copy into persistent device buffers.

        For a layout that is `captured` (only if `capabilities.graph`): `run` is recorded once for each number of rows
        and then replayed without calling it, while `plan` is called before every replay, outside of the recording.
        So `run` must read everything that changes from step to step out of device memory at fixed addresses, and fix
        launch shapes by the number of rows and the configuration alone. The layout's own device tensors are such
        memory: always the same ones for a number of rows. Buffers of the backend's own, filled by `plan`, have to be
        kept for each number of rows too. device_page_table is as wide as the longest sequence needs; columns past a
        sequence's last page hold old page numbers, which are valid but not this sequence's.
        """

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
        the layer's window. T may exceed the layout's num_tokens: those rows are padding, may hold anything, and what
        comes back for them is finite.
        """

    def token_rows(self, kv: tuple[torch.Tensor, ...]) -> TokenRows | None:
        """Where a fused operation may write this step's keys and values of one layer, whose buffers are `kv`, before
        `run` gets None for both; or None if `run` has to have them: they are scaled, laid out otherwise, or stored
        on the way. Called after `plan`, for each layer. Whether it is None may depend on the plan for speed alone: what
        was recorded after one plan is replayed after others, so `run` takes None for both after any plan of a backend
        that gives rows after some."""
        return None

    def run_mla(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        weights: MlaWeights,
        layer: int,
        kv: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        """`run` for groups of kind MLA_LATENT; only called if `capabilities.state_kinds` has that kind.

        Write latent [T, R] (normed) and k_rope [T, P] (rotated) into `kv`, then attend with q_nope [T, H, Dn] and
        q_rope [T, H, P] (rotated). The score of a key is scale * (q_nope . k_nope + q_rope . k_rope). Returns
        [T, H, Dv]. Whether keys and values are expanded (`weights` times the cached latents) or the weights are
        absorbed into query and output (q_nope @ key, then attention in latent space, then value) is the backend's
        choice, row by row: both give the same numbers but for rounding.
        """
        raise AssertionError(f"{type(self).__name__} names {StateKind.MLA_LATENT} in state_kinds and lacks run_mla")
