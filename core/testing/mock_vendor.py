"""MockVendorHardware: a chip's whole plugin, using every seam there is, on a CPU.

What a vendor ships, one piece a seam: the device, its operations, layers, recorded steps and copies, an attention
backend with a layout of its own, a runner of experts, a schedule policy. Everything counts its calls in
`MockVendorHardware.calls`, so that a test can see that it ran. `vendor_records` is what its entry points and manifest
would give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from core.interfaces.attention import AttentionCapabilities
from core.interfaces.batch import ForwardBatch
from core.interfaces.context import PluginContext
from core.interfaces.hardware import EngineFacts, Forward, HardwareCapabilities, MemoryInfo, ProbeResult
from core.interfaces.model import CausalLM
from core.interfaces.moe import ExpertWeights
from core.interfaces.schedule import Match, R, SchedulePolicy, StepLoad
from core.interfaces.spec import CacheGroupSpec, ModelSpec
from core.layers.mlp import GatedMlp
from core.layers.moe import TorchNativeMoe
from core.ops.reference import REFERENCES, fused_linear
from core.registry.records import PluginRecord
from core.testing.capturable_attention import CapturableAttention
from core.testing.mock_graphs import MockGraphs
from core.testing.mock_hardware import MockAsyncHardware

NAME = "mock_vendor"
QUEUE_VARIABLE = "MOCK_VENDOR_QUEUE_DEPTH"
CORE_DUMP_VARIABLE = "MOCK_VENDOR_CORE_FILE"
_ALIGNED = 16  # elements to which the attention backend fills up a head
_PAGE_HEADER = 64  # bytes that its layout keeps beside each page of each layer


class MockVendorHardware(MockAsyncHardware):
    """calls: how often each piece ran, over all instances of a process; `calls.clear()` before a test. Of its memory,
    KV pages are counted."""

    name: ClassVar[str] = NAME
    capabilities: ClassVar[HardwareCapabilities] = HardwareCapabilities(
        async_steps=True, graphs=True, dtypes=("float32",), page_size=8, chunk_tokens=32
    )
    calls: ClassVar[Counter[str]] = Counter()

    def __init__(self, ctx: PluginContext | None = None, *, memory_bytes: int = 1 << 26) -> None:
        super().__init__(ctx, memory_bytes=memory_bytes)

    @classmethod
    def probe(cls) -> ProbeResult:
        return ProbeResult(True, "", priority=-1, description="a vendor's device for tests")

    def initialize(self, local_rank: int) -> torch.device:
        self.calls[f"initialize {local_rank}"] += 1
        return super().initialize(local_rank)

    def memory(self) -> MemoryInfo:
        self.calls["memory"] += 1
        return MemoryInfo(self.memory_bytes, max(0, self.memory_bytes - self.calls["kv bytes"]))

    def rejects(self, facts: EngineFacts) -> str | None:
        """A rule of its own that core knows nothing of."""
        if facts.page_size not in (4, 8):
            return f"its pages have 4 or 8 tokens, not {facts.page_size}; use --page-size 8"
        return None

    def environment(self) -> Mapping[str, str]:
        return {QUEUE_VARIABLE: "2"}

    def core_dump_environment(self, folder: str) -> Mapping[str, str]:
        return {CORE_DUMP_VARIABLE: f"{folder}/%p.core"}

    def layers(self) -> Mapping[str, type]:
        return {"GatedMlp": VendorMlp}

    def prepare_model(self, model: CausalLM) -> CausalLM:
        self.calls["prepare_model"] += 1
        return _Prepared(model)

    def forward_runner(self, model: CausalLM, facts: EngineFacts) -> Forward:
        """Eager steps."""
        assert isinstance(model, _Prepared)

        def forward(batch: ForwardBatch) -> torch.Tensor:
            self.calls["forward_runner"] += 1
            batch.plan_attention()
            return model.forward(batch)

        return forward

    def graphs(self, facts: EngineFacts) -> MockGraphs:
        return _CountedGraphs(tuple(size for size in (1, 2, 4) if size <= facts.max_seqs))

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """All of the references, counted, but a weight in a layout of its own."""
        table = {name: _counted(name, op) for name, op in REFERENCES.items()}
        return {
            **table,
            "pack_linear_weight": _counted("pack_linear_weight", PackedWeight),
            "linear": _counted("linear", _linear),
            "fused_linear": _counted("fused_linear", _fused_linear),
        }

    def preferred_attention(self, spec: ModelSpec) -> tuple[str, ...]:
        return (NAME,)

    def communicator(self) -> str:
        return "gloo"

    def to_device(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor:
        self.calls["to_device"] += 1
        return super().to_device(staged, device)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        self.calls["to_host"] += 1
        return super().to_host(tensor)


def _linear(x: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Of a packed weight, or of a plain one."""
    packed = weight if isinstance(weight, PackedWeight) else PackedWeight(weight)
    return packed.multiply(x, bias)


def _fused_linear(
    x: torch.Tensor, weight: Any, bias: torch.Tensor | None = None, **around: Any
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    plain = weight.turned.t() if isinstance(weight, PackedWeight) else weight
    return fused_linear(x, plain, bias, **around)


def _counted(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        MockVendorHardware.calls[f"op {name}"] += 1
        return op(*args, **kwargs)

    return call


class PackedWeight:
    """A weight [N, K], kept as [K, N]."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.turned = weight.detach().t().contiguous()

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [T, K] -> [T, N]."""
        return x @ self.turned if bias is None else torch.addmm(bias, x, self.turned)


class VendorMlp(GatedMlp):
    """The MLP as one call of the vendor's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        MockVendorHardware.calls["layer GatedMlp"] += 1
        return super().forward(x)


class _Prepared(nn.Module):
    """The model as the vendor's compiler returns it."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self._model = model

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        MockVendorHardware.calls["prepared forward"] += 1
        return self._model.forward(batch)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        MockVendorHardware.calls["prepared logits"] += 1
        return self._model.compute_logits(hidden)


class _CountedGraphs(MockGraphs):
    def replay(self, size: int, variants: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
        MockVendorHardware.calls["replay"] += 1
        return super().replay(size, variants)


class VendorAttention(CapturableAttention):
    """Heads filled up to a multiple of 16 elements, and some bytes beside each page: so pages take more bytes than the
    elements of a token say. Slots are 32-bit."""

    capabilities: ClassVar[AttentionCapabilities] = replace(
        CapturableAttention.capabilities, hardware=(NAME,), slot_dtype="int32"
    )

    @classmethod
    def page_bytes(cls, group: CacheGroupSpec, page_size: int, itemsize: int, tp_size: int) -> int:
        heads = max(1, group.num_kv_heads // tp_size)
        row = heads * (_filled_up(group.head_dim) + _filled_up(group.v_head_dim)) * itemsize
        return len(group.layers) * (page_size * row + _PAGE_HEADER)

    def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
        config = self.config
        rows = config.num_pages * config.page_size
        made = {}
        for layer, spec in config.layers.items():
            buffers = []
            for dim in (spec.head_dim, spec.v_head_dim):
                shape = (rows, config.num_kv_heads, _filled_up(dim))
                whole = torch.full(shape, float("nan"), dtype=config.dtype, device=config.device)
                MockVendorHardware.calls["kv bytes"] += whole.nbytes
                buffers.append(whole[..., :dim])
            MockVendorHardware.calls["kv bytes"] += config.num_pages * _PAGE_HEADER
            made[layer] = tuple(buffers)
        return made

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert self._layout is not None
        assert self._layout.slot_mapping.dtype is torch.int32
        MockVendorHardware.calls["attention"] += 1
        return super().run(q, k, v, layer, kv, sinks)


def _filled_up(dim: int) -> int:
    return -(-dim // _ALIGNED) * _ALIGNED


class VendorMoe(TorchNativeMoe):
    """Experts."""

    def run(
        self, x: torch.Tensor, weights: ExpertWeights, topk_ids: torch.Tensor, topk_weights: torch.Tensor
    ) -> torch.Tensor:
        MockVendorHardware.calls["moe"] += 1
        # One expert after the other for all tokens: launches do not depend on the routing, so it can be recorded.
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in range(weights.gate_up.shape[0]):
            gate, up = (x @ weights.gate_up[expert].t()).chunk(2, -1)
            share = (topk_weights * (topk_ids == expert)).sum(-1, keepdim=True)
            out += (nn.functional.silu(gate) * up @ weights.down[expert].t()).float() * share
        return out.to(x.dtype)


class NewestFirst(SchedulePolicy):
    """Last come, first served; prompts are cut to 8 tokens a step while requests decode."""

    plans_steps: ClassVar[bool] = True

    def rank(self, waiting: Sequence[R], match: Match) -> Sequence[R]:
        MockVendorHardware.calls["rank"] += 1
        return sorted(waiting, key=lambda request: -request.arrival_s)

    def step_tokens(self, load: StepLoad) -> int:
        MockVendorHardware.calls["step_tokens"] += 1
        return load.chunk_tokens if not load.num_decodes else min(load.num_decodes + 8, load.chunk_tokens)


def vendor_records(**models: Any) -> list[PluginRecord]:
    """The vendor's plugins. models: architectures of its own, by name."""
    plugins: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("hardware", NAME, MockVendorHardware, {}),
        ("attention", NAME, VendorAttention, {"capabilities": {"priority": -1}}),
        ("moe", NAME, VendorMoe, {"requires_hardware": (NAME,), "capabilities": {"priority": 10}}),
        ("schedule_policies", "newest-first", NewestFirst, {"requires_hardware": (NAME,)}),
        *(("models", name, model, {"requires_hardware": (NAME,)}) for name, model in models.items()),
    ]
    return [
        PluginRecord(kind, name, "plugin-mock-vendor", "1.0", target=f"mock_vendor:{name}", loaded=loaded, **fields)
        for kind, name, loaded, fields in plugins
    ]
