"""HardwareBackend: a kind of device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from core.interfaces.context import PluginContext
from core.interfaces.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from core.interfaces.batch import ForwardBatch
    from core.interfaces.model import CausalLM

Forward = Callable[["ForwardBatch"], "torch.Tensor"]


class Between(Protocol):
    """What a step that is recorded in pieces calls between two of them, see `StepGraphs.capture_pieces`."""

    def __call__(self, call: Callable[..., None], result: torch.Tensor, *tensors: torch.Tensor) -> None: ...


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
    """async_steps: a step can run while the host works on the next (streams). graphs: steps can be recorded and
    replayed, see `HardwareBackend.graphs`. dtypes: usable compute types, preferred first. page_size: preferred tokens
    a KV page. chunk_tokens: preferred prefill token budget of a step. threads: computes on the host's own threads and
    takes their number as its setting `threads`."""

    async_steps: bool = False
    graphs: bool = False
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    page_size: int = 16
    chunk_tokens: int = 2048
    threads: bool = False


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine is about to be built with, for a device to look at before anything is loaded.

    attention: name of the chosen plugin of each cache group. quantization, moe, prefix_cache, schedule_policy: names.
    overlap: whether step n+1 is scheduled while n runs. max_seqs, max_tokens: most sequences and tokens of a step.
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
    prefix_cache: str = ""
    schedule_policy: str = ""


class StepGraphs(ABC):
    """Records steps of decodes once, for some numbers of rows, and replays them. Core does the rest: it pads a step to
    the next recorded number of rows, keeps the input buffers at fixed addresses, copies the step into them, and has
    the attention backends plan before each replay, outside of the recording. A step of another shape, or larger than
    the largest size, runs through `HardwareBackend.forward_runner`.

    Steps with prefills can be recorded too, for some numbers of tokens: in pieces, between which attention runs as it
    does elsewhere, since its launches depend on the lengths of the sequences. What is saved is the host's time for all
    the rest.

    sizes: numbers of rows, ascending, each 1 .. EngineFacts.max_seqs. token_sizes: numbers of tokens, ascending, each
    1 .. EngineFacts.max_tokens (and no more than max_seqs times context_length); empty: steps with prefills are
    launched. on_demand: a size is recorded when a step first needs it, and not at the start.
    """

    sizes: tuple[int, ...] = ()
    token_sizes: tuple[int, ...] = ()
    on_demand: bool = False

    @abstractmethod
    def capture(self, size: int, run: Callable[[], tuple[torch.Tensor, ...]], variants: tuple[int, ...] = ()) -> None:
        """Record `run`, which computes a step of `size` rows, from its inputs to the tokens, and does device work
        only. variants: which forms of attention are in it (`AttentionBackend.variant`), one for each cache group.
        Called once for each size and combination of variants, at the start with the largest size first (so that all may
        share the largest one's memory), when everything that happens only once has happened. `run` can be run any
        number of times: what it changes it changes in the same way again, or core puts it back. Where the model is
        called again later, only `replay` runs it."""

    @abstractmethod
    def replay(self, size: int, variants: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
        """Queue the recorded step on the current stream; returns what `run` returned, in the same order and shapes,
        valid until the next replay of any size."""

    def capture_pieces(self, size: int, run: Callable[[Between], torch.Tensor]) -> None:
        """Record `run`, which computes hidden states [size, hidden_size] of a step of `size` tokens. Where it calls
        `between(call, result, *tensors)`, the piece that is being recorded ends and another begins: at every replay,
        and only then, `call(result, *tensors)` is called there to fill `result`, with tensors of the same memory as
        those given, which nobody else keeps. Core has launched the same step just before, so everything that happens
        only once has happened, and replays it right after, to compare: sizes for which that gives anything else are
        launched. Where `run` is not recorded but run, `result` is filled with zeros. Only for `token_sizes`."""
        raise AssertionError(f"{type(self).__name__} names token_sizes and lacks capture_pieces")

    def replay_pieces(self, size: int) -> torch.Tensor:
        """Queue the recorded pieces and what is called between them; returns what `run` returned."""
        raise AssertionError(f"{type(self).__name__} names token_sizes and lacks replay_pieces")


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

    def measure_step(self, run: Callable[[], None]) -> None:
        """Called once, between the weights and `kv_budget_bytes`: `run` runs the largest step there can be, over a KV
        cache of two pages, and waits for it. A device that has to know how much memory a step takes runs it and takes
        that off the budget; `forward_runner` is then called for this step too. Here nothing is run."""
        return None

    def rejects(self, facts: EngineFacts) -> str | None:
        """Why this device cannot run an engine of these facts, or None; the text should say the way out. Core itself
        keeps no lists of what goes with which device."""
        return None

    def environment(self) -> Mapping[str, str]:
        """Environment variables of processes that compute on this device, set before they import torch. Variables
        that the operator has set are kept."""
        return {}

    def core_dump_environment(self, folder: str) -> Mapping[str, str]:
        """Variables, as those of `environment`, with which the device writes a core dump into `folder` when one of its
        programs fails. Asked if the operator wants such dumps (`device_core_dumps`); empty where there are none."""
        return {}

    def layers(self) -> Mapping[str, type]:
        """Layer classes that replace core's on this device: class name in `core.layers` -> a subclass of it."""
        return {}

    def prepare_model(self, model: CausalLM) -> CausalLM:
        """After the weights are loaded: change layouts, compile, wrap. Returns the model to run."""
        return model

    def forward_runner(self, model: CausalLM, facts: EngineFacts) -> Forward:
        """What runs the model in a step: ForwardBatch -> hidden states [T, hidden_size] of its T tokens. Called once,
        after `prepare_model` and when the KV buffers exist. A device's own runner may split, pad or compile as it
        likes; it has the attention backends plan what it is going to run, as here, and gives back the T rows that
        are real. For plain recording and replaying of decode steps, `graphs` is enough."""

        def forward(batch: ForwardBatch) -> torch.Tensor:
            batch.plan_attention()
            return model.forward(batch)

        return forward

    def graphs(self, facts: EngineFacts) -> StepGraphs | None:
        """Recorder of decode steps; None records nothing. Asked once if `capabilities.graphs`, and used if the
        attention backends can be recorded too (`AttentionCapabilities.graph`)."""
        return None

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

    def shares_host_memory(self, device: torch.device) -> bool:
        """Whether what the host holds is on the device already, so that the three below are never called."""
        return device.type == "cpu"

    def staging(self, num_bytes: int) -> torch.Tensor:
        """A host buffer [num_bytes] of uint8. It is filled, given to `to_device` once and then dropped; it must not be
        handed out again before that copy has finished (torch's allocator of pinned memory sees to it)."""
        import torch

        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self.pinned())

    def to_device(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Queue the copy of a staging buffer to `device`, on the current stream; returns it there."""
        return staged.to(device, non_blocking=self.pinned())

    def to_buffer(self, staged: torch.Tensor, target: torch.Tensor) -> None:
        """`to_device` into memory that is there already: target [num_bytes] of uint8."""
        target.copy_(staged, non_blocking=self.pinned())

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Queue the copy of a result to the host; it is read after an event recorded later on the same stream."""
        import torch

        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.pinned())
        return host.copy_(tensor, non_blocking=self.pinned())

    def stream(self) -> AbstractContextManager[Any]:
        """Context in which a step's device work is queued."""
        return nullcontext()

    def record_event(self) -> Any:
        """A marker after the work queued so far; None where work is synchronous."""
        return None

    def wait_event(self, event: Any) -> None:
        """Block the host until the marked work is done."""
        return None

    def elapsed_s(self, first: Any, second: Any) -> float | None:
        """Seconds of device time between two events of `record_event` that have been waited for; None where they are
        not timed. Steps are timed so if `times_steps`."""
        return None

    def times_steps(self) -> bool:
        """Whether core is to record an event before each step too, and to ask for the time between the two."""
        return False
