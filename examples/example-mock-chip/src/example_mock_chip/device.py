"""The device itself. Core asks it everything that depends on a device, and keeps no lists of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from core.interfaces.errors import CapacityError
from core.interfaces.hardware import EngineFacts, HardwareBackend, HardwareCapabilities, MemoryInfo, ProbeResult
from core.interfaces.spec import ModelSpec

if TYPE_CHECKING:  # selection imports this module, and has no use for torch
    import torch

_MIB = 1 << 20


class PaperChip(HardwareBackend):
    """`ctx.settings` is an Options; core validated it."""

    name: ClassVar[str] = "paper"
    capabilities: ClassVar[HardwareCapabilities] = HardwareCapabilities(
        dtypes=("bfloat16", "float32"), page_size=8, chunk_tokens=256
    )

    @classmethod
    def probe(cls) -> ProbeResult:
        # A real probe looks for a driver: cheap, without side effects, and with a reason that helps where it finds
        # none. This chip is always there; the priority below zero leaves the automatic choice to real devices.
        return ProbeResult(True, priority=-100, description="a chip made of paper")

    def initialize(self, local_rank: int) -> torch.device:
        import torch

        return torch.device("cpu")

    def memory(self) -> MemoryInfo:
        total = self.ctx.settings.memory_mib * _MIB
        return MemoryInfo(total, total)

    def kv_budget_bytes(self, fraction: float, requested_bytes: int | None) -> int:
        memory = self.memory()
        wanted = int(memory.total_bytes * fraction) if requested_bytes is None else requested_bytes
        if wanted > memory.free_bytes:
            raise CapacityError(
                f"kv_cache_bytes={wanted} does not fit: the chip has {memory.free_bytes} bytes",
                hint="lower --kv-cache-bytes, or give the chip more with --set paper.memory_mib=N",
            )
        return wanted

    def rejects(self, facts: EngineFacts) -> str | None:
        # Rules that nobody else can know. They are asked before any weight is loaded.
        if facts.page_size % 8:
            return f"its memory is read 8 tokens at a time, page_size is {facts.page_size}; use --page-size 8 or 16"
        if facts.tensor_parallel_size > 1:
            return "chips made of paper cannot be connected; use --tensor-parallel-size 1"
        return None

    def environment(self) -> Mapping[str, str]:
        # Set in every process that computes, before torch is imported; what the operator has set wins.
        return {"PAPER_CHIP_QUEUE": "2"}

    def layers(self) -> Mapping[str, type]:
        from example_mock_chip.layers import PaperMlp

        # Every model builds core's layers through `ctx.layer`, so all of them get this one.
        return {"GatedMlp": PaperMlp}

    def preferred_attention(self, spec: ModelSpec) -> tuple[str, ...]:
        return ("paper",)
