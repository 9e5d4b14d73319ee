"""HardwareBackend: a kind of device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from core.interfaces.context import PluginContext
from core.interfaces.spec import ModelSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Whether this machine has the device, and if not, why not. `priority`: higher wins the automatic choice."""

    available: bool
    reason: str = ""
    priority: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Bytes of device memory."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class HardwareCapabilities:
    """async_steps: a step can run while the host works on the next (streams). graphs: captured steps can be
    replayed. dtypes: usable compute types, preferred first. page_size: preferred tokens a KV page.
    chunk_tokens: preferred prefill token budget of a step. threads: computes on the host's own threads and takes
    their number as its setting `threads`."""

    async_steps: bool = False
    graphs: bool = False
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    page_size: int = 16
    chunk_tokens: int = 2048
    threads: bool = False


class HardwareBackend(ABC):
    """One kind of device. Everything device-specific the engine does goes through here."""

    name: ClassVar[str]
    capabilities: ClassVar[HardwareCapabilities]

    def __init__(self, ctx: PluginContext) -> None:
        self.ctx = ctx

    @classmethod
    @abstractmethod
    def probe(cls) -> ProbeResult:
        """Cheap and without side effects; never raises."""

    @abstractmethod
    def initialize(self, local_rank: int) -> torch.device:
        """Prepare this process for one device (threads, current device) and return it."""

    @abstractmethod
    def memory(self) -> MemoryInfo:
        """Device memory now."""

    @abstractmethod
    def kv_budget_bytes(self, fraction: float, requested_bytes: int | None) -> int:
        """Bytes for the KV cache after the weights are loaded. `fraction` of the device's memory is for weights
        and KV together; `requested_bytes` overrides it. Raises CapacityError when it does not fit."""

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Implementations that replace core's references on this device, by name."""
        return {}

    def preferred_attention(self, spec: ModelSpec) -> tuple[str, ...]:
        """Names of attention plugins that go before all others, best first. Empty: by the plugins' priorities."""
        return ()

    def communicator(self) -> str:
        """torch.distributed backend for collectives between devices of this kind."""
        return "gloo"

    def pinned(self) -> bool:
        """Whether host staging buffers should be pinned."""
        return False

    def stream(self) -> AbstractContextManager[Any]:
        """Context in which a step's device work is queued."""
        return nullcontext()

    def record_event(self) -> Any:
        """A marker after the work queued so far; None where work is synchronous."""
        return None

    def wait_event(self, event: Any) -> None:
        """Block the host until the marked work is done."""
        return None
