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

    from core.interfaces.batch import ForwardBatch
    from core.interfaces.model import CausalLM

Forward = Callable[["ForwardBatch"], "torch.Tensor"]


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


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine is about to be built with, for a device to look at before anything is loaded.

    attention: name of the chosen plugin of each cache group. quantization, moe: names. overlap: whether step n+1 is
    scheduled while n runs. max_seqs, max_tokens: most sequences and tokens of a step.
    """

    spec: ModelSpec
    dtype: str
    attention: tuple[str, ...]
    quantization: str
    moe: str
    page_size: int
    context_length: int
    max_seqs: int
    max_tokens: int
    tensor_parallel_size: int
    overlap: bool


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

    def rejects(self, facts: EngineFacts) -> str | None:
        """Why this device cannot run an engine of these facts, or None; the text should say the way out. Core itself
        keeps no lists of what goes with which device."""
        return None

    def environment(self) -> Mapping[str, str]:
        """Environment variables of processes that compute on this device, set before they import torch. Variables
        that the operator has set are kept."""
        return {}

    def layers(self) -> Mapping[str, type]:
        """Layer classes that replace core's on this device: class name in `core.layers` -> a subclass of it."""
        return {}

    def prepare_model(self, model: CausalLM) -> CausalLM:
        """After the weights are loaded: change layouts, compile, wrap. Returns the model to run."""
        return model

    def forward_runner(self, model: CausalLM, facts: EngineFacts) -> Forward:
        """What runs the model in a step: ForwardBatch -> hidden states [T, hidden_size] of its T tokens. A device that
        captures and replays steps (graphs) returns its own runner, which may pad the batch as it likes and gives
        back the T rows that are real. Called once, after `prepare_model` and when the KV buffers exist."""
        return model.forward

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
