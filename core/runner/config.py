"""What a ModelRunner is built from: explicit values, so that it can be built without a registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.interfaces.attention import AttentionBackend
from core.interfaces.build import Communicator
from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError
from core.interfaces.hardware import EngineFacts
from core.interfaces.model import ModelArch
from core.interfaces.moe import MoeRunner
from core.interfaces.quant import QuantMethod
from core.interfaces.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from core.runner.processors import LogitProcessors


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """One rank's runner.

    spec, arch: the model. quant, moe, ops: what its layers are built with. attention: the backend class of each cache
    group, in the order of spec.cache_groups; attention_contexts: one each, or empty for default contexts.
    dtype: compute type. kv_dtype: of the KV cache, None for the compute type. page_size: tokens a KV page.
    max_running: slots. chunk_tokens: token budget of a step. context_length: most tokens of a sequence. checkpoint:
    folder, None with load_format "dummy" (random weights from `seed`). load_threads: readers of weight files. tp:
    communicator of the ranks that share each layer. facts: what the device's plugin is told; None makes them from
    the rest. processors: logit processors that requests may name.
    kv_scales: of cached keys and values by layer, as `AttentionConfig.kv_scales`; None takes the checkpoint's.
    broadcast: gives rank 0's tensor to every rank, in the order of their collectives; None where there is one rank.
    """

    spec: ModelSpec
    arch: type[ModelArch]
    quant: QuantMethod
    moe: MoeRunner
    ops: Mapping[str, Callable[..., Any]]
    attention: tuple[type[AttentionBackend], ...]
    tp: Communicator
    dtype: torch.dtype
    page_size: int
    max_running: int
    chunk_tokens: int
    context_length: int
    checkpoint: Path | None = None
    load_format: Literal["safetensors", "dummy"] = "safetensors"
    load_threads: int = 4
    seed: int = 0
    attention_contexts: tuple[PluginContext, ...] = field(default=())
    facts: EngineFacts | None = None
    processors: LogitProcessors | None = None
    broadcast: Callable[[torch.Tensor], torch.Tensor] | None = None
    kv_dtype: torch.dtype | None = None
    kv_scales: Mapping[int, tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        for name in ("page_size", "max_running", "chunk_tokens", "context_length", "load_threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1", field=name)
        groups = len(self.spec.cache_groups)
        for name in ("attention", "attention_contexts"):
            given = len(getattr(self, name))
            if given != groups and (given or name == "attention"):
                raise ConfigError(f"{name} has {given} entries, but the model has {groups} cache groups", field=name)
        if self.load_format != "dummy" and self.checkpoint is None:
            raise ConfigError(
                "checkpoint is None, so there are no weights to read",
                field="checkpoint",
                hint='give a folder, or load_format="dummy" for random weights',
            )

    @property
    def scales_kv(self) -> bool:
        """Whether the KV cache is one that has scales."""
        return (self.kv_dtype or self.dtype).itemsize == 1

    @property
    def max_pages_per_seq(self) -> int:
        """Columns of the page table. One token more than the context: with overlap a request may run one step past
        its end before the host knows."""
        return -(-(self.context_length + 1) // self.page_size)

    @property
    def max_step_tokens(self) -> int:
        """Most tokens of a step: the budget, or one for each slot where that is more."""
        return max(self.chunk_tokens, self.max_running)
