"""What a model says of itself: layers, the state each layer keeps, and sizes. Pure data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Task = Literal["generate", "embed", "classify"]
Pooling = Literal["last", "mean", "first"]


class StateKind(StrEnum):
    """What a layer remembers between steps. A prefix cache states which kinds it can store."""

    FULL = "full"  # K and V of every token
    SLIDING_WINDOW = "sliding_window"  # K and V of the last `window` tokens
    MLA_LATENT = "mla_latent"  # one compressed latent plus shared rope key a token
    RECURRENT = "recurrent"  # one state of fixed size a request


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One attention layer's shape and rule.

    num_heads, num_kv_heads: of the whole model, before tensor-parallel sharding.
    head_dim: of q and k; v_head_dim: of v. scale: factor on q·k.
    window: a token sees itself and the window-1 tokens before it; None sees all.
    softcap: logits are softcap * tanh(logits / softcap); None is off.
    has_sinks: a learned extra logit per head joins the softmax denominator.
    latent_dim, rope_dim: of multi-head latent attention (MLA, DeepSeek-V2, arXiv:2405.04434): what is cached of a
        token is one latent vector of latent_dim elements, from which keys and values of all heads are projected,
        and one rotated key of rope_dim elements that all heads share. Then head_dim is the whole query/key width
        (head_dim - rope_dim of it without position) and num_kv_heads is 1. latent_dim 0: not MLA.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    v_head_dim: int = 0
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    latent_dim: int = 0
    rope_dim: int = 0

    def __post_init__(self) -> None:
        if not self.v_head_dim:
            object.__setattr__(self, "v_head_dim", self.head_dim)


@dataclass(frozen=True, slots=True)
class CacheGroupSpec:
    """Layers whose state lives and dies together; each group has its own page numbers.

    kind: what is remembered. layers: indices of the model's layers in this group.
    num_kv_heads, head_dim, v_head_dim: of one layer, whole model; for MLA_LATENT 1, the latent's size and the shared
        rope key's. window: for SLIDING_WINDOW. state_elements: for RECURRENT, elements per request and layer.
    """

    name: str
    kind: StateKind
    layers: tuple[int, ...]
    num_kv_heads: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    window: int | None = None
    state_elements: int = 0

    def elements_per_token(self, tp_size: int = 1) -> int:
        """KV elements that one token takes over all layers of the group, on one of `tp_size` ranks. A latent is whole
        on every rank."""
        heads = max(1, self.num_kv_heads // tp_size)
        return len(self.layers) * heads * (self.head_dim + self.v_head_dim)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer: its attention rule and the index of its cache group."""

    attention: AttentionSpec | None
    cache_group: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything the engine needs to know of a model before it is built.

    architecture: Hugging Face name. context_length: most tokens of prompt plus output.
    dtype: the checkpoint's, e.g. "bfloat16". arch: the plugin's own typed configuration, opaque to core.
    eos_token_ids: ids that end a text unless the request says otherwise.
    task: what the model is built for. "generate": it has a language-model head. "embed": it has none, and gives its
        final hidden states. "classify": it has a head that scores `labels` (`ScoringModel`). Core builds a model of
        "generate" as one of "embed" where the operator wants vectors alone, by replacing this field before `weights`
        and `build`; then the checkpoint need not have a language-model head, and one that it has is left out.
    pooling: which hidden states stand for a text, unless checkpoint or operator say otherwise.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    cache_groups: tuple[CacheGroupSpec, ...]
    context_length: int
    dtype: str = "bfloat16"
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    num_experts: int = 0
    task: Task = "generate"
    pooling: Pooling = "last"
    labels: tuple[str, ...] = ()
    arch: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """A model's wishes, used where the operator chose nothing. Names of plugins, best first."""

    attention: tuple[str, ...] = ()
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    page_size: int | None = None
