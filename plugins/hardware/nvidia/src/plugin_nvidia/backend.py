"""The device."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.interfaces.context import PluginContext
from core.interfaces.errors import CapacityError, ConfigError
from core.interfaces.hardware import (
    EngineFacts,
    Forward,
    HardwareBackend,
    HardwareCapabilities,
    MemoryInfo,
    ProbeResult,
    StepGraphs,
)
from core.interfaces.spec import ModelSpec
from plugin_nvidia.nvml import visible_gpus
from plugin_nvidia.settings import Settings

if TYPE_CHECKING:
    import torch

    from core.interfaces.model import CausalLM
    from plugin_nvidia.staging import StagingRing

_GIB = 1 << 30
_MIB = 1 << 20
_PRIORITY = 100
_BFLOAT16_FROM = (8, 0)  # compute capability


class NvidiaBackend(HardwareBackend):
    """One GPU. Everything of a step is queued on one stream of its own, so that it is in order and can be recorded."""

    name = "nvidia"
    capabilities = HardwareCapabilities(
        async_steps=True,
        graphs=True,
        dtypes=("bfloat16", "float16", "float32"),
        page_size=16,
        chunk_tokens=8192,
    )

    def __init__(self, ctx: PluginContext) -> None:
        super().__init__(ctx)
        self.settings = ctx.settings if isinstance(ctx.settings, Settings) else Settings(**dict(ctx.settings or {}))
        self._device: torch.device | None = None
        self._stream: Any = None
        self._ring: StagingRing | None = None
        self._free_at_start = 0
        self._step_bytes = 0

    # Being found

    @classmethod
    def probe(cls) -> ProbeResult:
        """Asks the driver; makes no CUDA context."""
        gpus, reason = visible_gpus()
        if not gpus:
            return ProbeResult(False, reason)
        if (unusable := _unusable_torch()) is not None:
            return ProbeResult(False, unusable)
        first = gpus[0]
        count = f"{len(gpus)} x " if len(gpus) > 1 else ""
        return ProbeResult(
            True, "", priority=_PRIORITY, description=f"{count}{first.name}, {first.total_bytes / _GIB:.0f} GiB each"
        )

    def rejects(self, facts: EngineFacts) -> str | None:
        gpus, _ = visible_gpus()
        if gpus and facts.tensor_parallel_size > len(gpus):  # where there is none, the probe has said so
            return (
                f"tensor_parallel_size is {facts.tensor_parallel_size}, and {len(gpus)} GPUs can be seen; use "
                f"--tensor-parallel-size {len(gpus)} at most, or let CUDA_VISIBLE_DEVICES show more"
            )
        old = [gpu for gpu in gpus[: facts.tensor_parallel_size] if gpu.capability < _BFLOAT16_FROM]
        if facts.dtype == "bfloat16" and old:
            return f"{old[0].name} does not compute in bfloat16; use --dtype float16"
        return None

    def environment(self) -> Mapping[str, str]:
        # A kernel is loaded when it is first launched: loading all of a library's takes seconds and memory.
        return {"CUDA_MODULE_LOADING": "LAZY"}

    def core_dump_environment(self, folder: str) -> Mapping[str, str]:
        return {
            "CUDA_ENABLE_COREDUMP_ON_EXCEPTION": "1",
            "CUDA_ENABLE_LIGHTWEIGHT_COREDUMP": "1",
            "CUDA_COREDUMP_FILE": f"{folder}/%h.%p.%t.core",
        }

    def preferred_attention(self, spec: ModelSpec) -> tuple[str, ...]:
        return ("fa3", "triton", "flashinfer")

    def communicator(self) -> str:
        return "nccl"

    # The device

    def initialize(self, local_rank: int) -> torch.device:
        """Raises ConfigError if there is no GPU of that number, or torch cannot use it."""
        import torch

        from plugin_nvidia.staging import StagingRing

        count = torch.cuda.device_count()
        if local_rank >= count:
            raise ConfigError(
                f"rank {local_rank} has no GPU: torch {torch.__version__} sees {count}",
                field="engine.device",
                value=self.name,
                hint="use fewer ranks, let CUDA_VISIBLE_DEVICES show more, or install a driver that this torch can use",
            )
        if self._device is None:
            self._device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self._device)
            self._stream = torch.cuda.Stream(self._device)
            self._ring = StagingRing()
            self._free_at_start = torch.cuda.mem_get_info(self._device)[0]
        torch.cuda.set_device(self._device)
        torch.backends.cuda.matmul.allow_tf32 = self.settings.tf32
        return self._device

    # Memory

    def memory(self) -> MemoryInfo:
        import torch

        free, total = torch.cuda.mem_get_info(self._device)
        return MemoryInfo(total, free)

    def measure_step(self, run: Callable[[], None]) -> None:
        """Runs it and notes how far torch's memory grew. What the caching allocator took from the driver counts, and
        not only what tensors held at one time."""
        import torch

        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_reserved(self._device)
        run()
        torch.cuda.synchronize(self._device)
        self._step_bytes = torch.cuda.max_memory_reserved(self._device) - before
        torch.cuda.empty_cache()

    def kv_budget_bytes(self, fraction: float, requested_bytes: int | None) -> int:
        """`fraction` of the device's memory less what this process has taken since `initialize` (the weights), and
        never so much that the largest step (as measured) and the reserve would not fit beside it."""
        import torch

        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        memory = self.memory()
        reserve = self.settings.reserve_mib * _MIB
        usable = memory.free_bytes - self._step_bytes - reserve
        rest = (
            f"{memory.free_bytes / _GIB:.2f} of {memory.total_bytes / _GIB:.2f} GiB are free, the largest step takes "
            f"{self._step_bytes / _GIB:.2f} GiB and {reserve / _GIB:.2f} GiB stay free"
        )
        if requested_bytes is not None:
            if requested_bytes > usable:
                raise CapacityError(
                    f"kv_cache_bytes={requested_bytes} ({requested_bytes / _GIB:.2f} GiB) does not fit: {rest}",
                    hint=f"set kv_cache_bytes to at most {max(usable, 0)}, or a smaller --chunked-prefill-size",
                )
            return requested_bytes
        weights = max(0, self._free_at_start - memory.free_bytes)
        budget = min(int(memory.total_bytes * fraction) - weights, usable)
        if budget <= 0:
            raise CapacityError(
                f"no memory is left for the KV cache: memory_fraction={fraction} less {weights / _GIB:.2f} GiB of "
                f"weights is not enough; {rest}",
                hint="raise memory_fraction, take a smaller model or --chunked-prefill-size, or free memory of the GPU",
            )
        return budget

    # Steps

    def forward_runner(self, model: CausalLM, facts: EngineFacts) -> Forward:
        import torch

        # Weights and KV were written on other streams than the steps'.
        torch.cuda.synchronize(self._device)
        return super().forward_runner(model, facts)

    def graphs(self, facts: EngineFacts) -> StepGraphs | None:
        if self.settings.graphs == "off":
            return None
        from plugin_nvidia.graphs import CudaStepGraphs, graph_sizes, token_sizes

        sizes = graph_sizes(min(facts.max_seqs, self.settings.max_graph_rows))
        most_tokens = min(facts.max_tokens, facts.max_seqs * facts.context_length)
        tokens = token_sizes(min(most_tokens, self.settings.max_graph_tokens))
        return CudaStepGraphs(sizes, tokens, on_demand=self.settings.graphs == "demand")

    def pinned(self) -> bool:
        return True

    def staging(self, num_bytes: int) -> torch.Tensor:
        assert self._ring is not None, "initialize() comes first"
        return self._ring.take(num_bytes)

    def stream(self) -> AbstractContextManager[Any]:
        import torch

        made: AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return made

    def record_event(self) -> Any:
        import torch

        assert self._ring is not None, "initialize() comes first"
        event = torch.cuda.Event(enable_timing=self.settings.time_steps)
        event.record(self._stream)
        self._ring.close(event)
        return event

    def wait_event(self, event: Any) -> None:
        event.synchronize()

    def times_steps(self) -> bool:
        return self.settings.time_steps

    def elapsed_s(self, first: Any, second: Any) -> float | None:
        return first.elapsed_time(second) / 1000 if self.settings.time_steps else None


def _unusable_torch() -> str | None:
    """Why the installed torch cannot compute on such a device, or None; read from its files, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "torch is not installed"
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return None
    version = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    cuda = re.search(r"^cuda\s*(?::[^=]*)?=\s*(\S+)", text, re.MULTILINE)
    if cuda is not None and cuda[1] == "None":
        return f"torch {version[1] if version else ''} is built without CUDA; install a build of torch for CUDA"
    return None
