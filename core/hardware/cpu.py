"""The CPU backend: threads, memory of this machine or container, and the CPU's faster operations."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from core.hardware.host_allocator import keep_freed_memory
from core.hardware.host_memory import host_memory, usable_cores
from core.interfaces.errors import CapacityError, ConfigError
from core.interfaces.hardware import HardwareBackend, HardwareCapabilities, MemoryInfo, ProbeResult

if TYPE_CHECKING:
    import torch

_GIB = 1 << 30
# A host serves other programs too: unless asked for more, KV takes at most this much,
_DEFAULT_KV_BYTES = 4 * _GIB
# and this much stays free for activations, buffers and the page cache.
_HEADROOM_BYTES = _GIB // 2
_LEAST_KV_BYTES = 16 << 20


class CpuBackend(HardwareBackend):
    """Settings: `threads`, compute threads (default: all cores that this process may use)."""

    name = "cpu"
    # Attention gathers tokens, so the page size costs nothing; small pages share prefixes more finely.
    capabilities = HardwareCapabilities(
        dtypes=("bfloat16", "float32", "float16"), page_size=16, chunk_tokens=2048, threads=True
    )

    @classmethod
    def probe(cls) -> ProbeResult:
        machine = platform.machine() or "unknown processor"
        return ProbeResult(available=True, priority=0, description=f"{machine}, {usable_cores()} cores")

    def initialize(self, local_rank: int) -> torch.device:
        """Set the number of compute threads. Raises ConfigError for an unusable `threads` setting."""
        import torch

        keep_freed_memory()
        torch.set_num_threads(self._num_threads())
        return torch.device("cpu")

    def memory(self) -> MemoryInfo:
        return host_memory()

    def kv_budget_bytes(self, fraction: float, requested_bytes: int | None) -> int:
        """`fraction` is taken of what is *available* now, since a host also runs other programs, less headroom and at
        most 4 GiB; `requested_bytes` is bounded only by what is available."""
        free = self.memory().free_bytes
        usable = free - _HEADROOM_BYTES
        if requested_bytes is not None:
            if requested_bytes > usable:
                raise CapacityError(
                    f"kv_cache_bytes={requested_bytes} ({requested_bytes / _GIB:.2f} GiB) does not fit: "
                    f"{free / _GIB:.2f} GiB are available and {_HEADROOM_BYTES / _GIB:.2f} GiB stay free for the rest",
                    hint=f"set kv_cache_bytes to at most {max(usable, 0)}, or free memory on this machine",
                )
            return requested_bytes
        budget = min(_DEFAULT_KV_BYTES, int(free * fraction) - _HEADROOM_BYTES)
        if budget < _LEAST_KV_BYTES:
            raise CapacityError(
                f"no memory is left for the KV cache: memory_fraction={fraction} of {free / _GIB:.2f} GiB available "
                f"less {_HEADROOM_BYTES / _GIB:.2f} GiB headroom is {max(budget, 0) / _GIB:.2f} GiB",
                hint="raise memory_fraction, choose a smaller model, or free memory on this machine",
            )
        return budget

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        from core.hardware.cpu_ops import cpu_ops

        return cpu_ops(self._num_threads())

    def _num_threads(self) -> int:
        settings = self.ctx.settings
        given = settings.get("threads") if isinstance(settings, Mapping) else getattr(settings, "threads", None)
        if given is None:
            return usable_cores()
        try:
            threads = int(given)
        except (TypeError, ValueError):
            threads = 0
        if threads < 1:
            raise ConfigError(
                f"threads={given!r} is not a number of threads",
                field="plugins.cpu.threads",
                value=given,
                hint="give a whole number of 1 or more, or leave it out for all cores",
            )
        return threads
