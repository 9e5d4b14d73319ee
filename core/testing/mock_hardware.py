"""MockHardware: a device for tests. Computes on the CPU, with sizes that make small tests interesting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from core.interfaces.context import PluginContext
from core.interfaces.errors import CapacityError
from core.interfaces.hardware import HardwareBackend, HardwareCapabilities, MemoryInfo, ProbeResult

_MEMORY_BYTES = 1 << 30
_RUBBISH = 0x5A


class MockHardware(HardwareBackend):
    """Synchronous steps, float32, small pages. memory_bytes: what it claims to have."""

    name: ClassVar[str] = "mock"
    capabilities: ClassVar[HardwareCapabilities] = HardwareCapabilities(
        dtypes=("float32",), page_size=4, chunk_tokens=64
    )

    def __init__(self, ctx: PluginContext | None = None, *, memory_bytes: int = _MEMORY_BYTES) -> None:
        super().__init__(ctx or PluginContext())
        self.memory_bytes = memory_bytes

    @classmethod
    def probe(cls) -> ProbeResult:
        return ProbeResult(True, "always there", priority=-1, description="mock device for tests")

    def initialize(self, local_rank: int) -> torch.device:
        return torch.device("cpu")

    def memory(self) -> MemoryInfo:
        return MemoryInfo(self.memory_bytes, self.memory_bytes)

    def kv_budget_bytes(self, fraction: float, requested_bytes: int | None) -> int:
        budget = int(self.memory_bytes * fraction) if requested_bytes is None else requested_bytes
        if budget > self.memory_bytes:
            raise CapacityError(f"kv_cache_bytes is {budget}, but the mock device has {self.memory_bytes} bytes")
        return budget


@dataclass(slots=True)
class MockEvent:
    """Marks the work of one step. `waited`: whether the host has waited for it. copies: (host buffer, values) that
    become readable then."""

    number: int
    waited: bool = False
    copies: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


class MockAsyncHardware(MockHardware):
    """Asynchronous steps on memory of its own. The work itself is done at once, but a result that was copied to the
    host can be read only after waiting for an event recorded behind the copy: before, the buffer holds rubbish.
    `events` are those recorded so far; num_uploads, num_downloads count copies."""

    name: ClassVar[str] = "mock_async"
    capabilities: ClassVar[HardwareCapabilities] = HardwareCapabilities(
        async_steps=True, dtypes=("float32",), page_size=4, chunk_tokens=64
    )

    def __init__(self, ctx: PluginContext | None = None, *, memory_bytes: int = _MEMORY_BYTES) -> None:
        super().__init__(ctx, memory_bytes=memory_bytes)
        self.events: list[MockEvent] = []
        self.num_uploads = self.num_downloads = 0
        self._streaming = False
        self._queued: list[tuple[torch.Tensor, torch.Tensor]] = []

    def shares_host_memory(self, device: torch.device) -> bool:
        return False

    def to_device(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor:
        self.num_uploads += 1
        copy = staged.clone()
        staged.fill_(_RUBBISH)  # the host may use its buffer for something else now
        return copy

    def to_buffer(self, staged: torch.Tensor, target: torch.Tensor) -> None:
        self.num_uploads += 1
        target.copy_(staged)
        staged.fill_(_RUBBISH)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        self.num_downloads += 1
        host = torch.empty(tensor.shape, dtype=tensor.dtype)
        host.view(-1).view(torch.uint8).fill_(_RUBBISH)
        self._queued.append((host, tensor.clone()))
        return host

    def stream(self) -> AbstractContextManager[Any]:
        return self._in_stream()

    @contextmanager
    def _in_stream(self) -> Iterator[None]:
        self._streaming = True
        try:
            yield
        finally:
            self._streaming = False

    def record_event(self) -> MockEvent:
        if not self._streaming:
            raise RuntimeError("record_event outside the stream would mark nothing")
        event = MockEvent(len(self.events), copies=self._queued)
        self._queued = []
        self.events.append(event)
        return event

    def wait_event(self, event: Any) -> None:
        for earlier in self.events[event.number :: -1]:  # a stream is in order
            if earlier.waited:
                break
            with torch.inference_mode():  # the step's tensors are of that mode
                for host, values in earlier.copies:
                    host.copy_(values)
            earlier.copies.clear()
            earlier.waited = True
