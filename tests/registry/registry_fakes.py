"""Tiny plugins for selection tests. They compute nothing; selection never runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.config.sections import Settings
from core.interfaces.attention import AttentionBackend, AttentionCapabilities
from core.interfaces.hardware import HardwareBackend, HardwareCapabilities, ProbeResult
from core.interfaces.model import ModelArch
from core.interfaces.spec import (
    AttentionSpec,
    CacheGroupSpec,
    LayerSpec,
    ModelDefaults,
    ModelSpec,
    StateKind,
)
from core.registry import Catalog, PluginRecord
from core.registry.resolution import Choice, Resolution

MakeDist = Callable[..., Path]
DIST = "dummy"


def record(kind: str, name: str, loaded: Any = None, dist: str = DIST, **fields: Any) -> PluginRecord:
    return PluginRecord(kind, name, dist, "1.0", target=f"nowhere_at_all:{name}", loaded=loaded, **fields)


def hardware(
    present: bool = True,
    priority: int = 0,
    preferred: tuple[str, ...] = (),
    probe: Callable[[], ProbeResult] | None = None,
    **caps: Any,
) -> type:
    class Fake(HardwareBackend):
        capabilities = HardwareCapabilities(**caps)

        @classmethod
        def probe(cls) -> ProbeResult:
            if probe is not None:
                return probe()
            return ProbeResult(present, "" if present else "no such device", priority, "a fake device")

        def preferred_attention(self, spec: ModelSpec) -> tuple[str, ...]:
            return preferred

        def initialize(self, local_rank: int) -> Any:
            raise AssertionError("resolve must not initialise a device")

        def memory(self) -> Any:
            raise AssertionError("resolve must not ask for memory")

        def kv_budget_bytes(self, fraction: float, requested_bytes: int | None) -> int:
            raise AssertionError("resolve must not ask for memory")

    return Fake


def attention(**caps: Any) -> type:
    caps.setdefault("state_kinds", frozenset({StateKind.FULL, StateKind.SLIDING_WINDOW}))
    return type("FakeAttention", (AttentionBackend,), {"capabilities": AttentionCapabilities(**caps)})


def model(spec: ModelSpec | Exception, defaults: ModelDefaults | Exception = ModelDefaults()) -> type:
    class Fake(ModelArch):
        @classmethod
        def spec(cls, hf_config: Any) -> ModelSpec:
            if isinstance(spec, Exception):
                raise spec
            return spec

        @classmethod
        def defaults(cls, spec: ModelSpec, hardware: str) -> ModelDefaults:
            if isinstance(defaults, Exception):
                raise defaults
            return defaults

        @classmethod
        def build(cls, spec: Any, ctx: Any) -> Any:
            raise AssertionError("resolve must not build")

        @classmethod
        def weights(cls, spec: Any) -> Any:
            raise AssertionError("resolve must not ask for weights")

    return Fake


def quant(*methods: str | None, rejects: str | None = None) -> type:
    class Fake:
        def __init__(self, config: Any, ctx: Any) -> None:
            pass

        def rejects(self, facts: Any) -> str | None:
            return rejects

        @classmethod
        def recognises(cls, config: Any) -> bool:
            return (config.get("quant_method") if config is not None else None) in methods

    return Fake


def quant_of_nothing() -> type:
    """Serves unquantized checkpoints and no others."""

    class Plain(quant()):  # type: ignore[misc]
        @classmethod
        def recognises(cls, config: Any) -> bool:
            return config is None

    return Plain


def cache(*kinds: str) -> type:
    return type("FakeCache", (), {"state_kinds": frozenset(StateKind(kind) for kind in kinds)})


def make_spec(*kinds: StateKind, head_dim: int = 64, **attention_fields: Any) -> ModelSpec:
    """One layer and one cache group for each kind."""
    kinds = kinds or (StateKind.FULL,)
    layer = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=head_dim, scale=0.125, **attention_fields)
    groups = tuple(CacheGroupSpec(str(kind), kind, (i,), 2, head_dim, head_dim) for i, kind in enumerate(kinds))
    layers = tuple(LayerSpec(layer, cache_group=i) for i in range(len(kinds)))
    return ModelSpec("XForCausalLM", 100, 8, layers, groups, context_length=4096)


def records(
    spec: ModelSpec | Exception | None = None,
    defaults: ModelDefaults | Exception = ModelDefaults(),
) -> list[PluginRecord]:
    """A small complete set: one of everything that an unquantized model needs."""
    return [
        record("models", "XForCausalLM", model(spec or make_spec(), defaults)),
        record("hardware", "host", hardware()),
        record("attention", "plain", attention()),
        record("prefix_cache", "radix", cache("full", "sliding_window", "mla_latent")),
        record("prefix_cache", "none", cache(*StateKind)),
        record("quant", "none", quant(None)),
        record("moe", "plain", type("Moe", (), {})),
        record("schedule_policies", "fcfs", type("Policy", (), {})),
    ]


def swap(base: list[PluginRecord], *changed: PluginRecord) -> Catalog:
    """A catalog in which `changed` replace records of the same kind and name, or are added."""
    keys = {(r.kind, r.name) for r in changed}
    return Catalog.from_records([*(r for r in base if (r.kind, r.name) not in keys), *changed])


def write_checkpoint(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    data = {"architectures": ["XForCausalLM"], "model_type": "x_y", "torch_dtype": "bfloat16", **config}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    return folder


def settings(folder: Path | str | None, **flat: Any) -> Settings:
    """Settings with the given flat fields set explicitly."""
    from core.config.loading import load_settings

    flags = {**flat} if folder is None else {"model": str(folder), **flat}
    return load_settings(flags, origin="argument").settings


def broken(base: PluginRecord, reason: str = "it is broken") -> PluginRecord:
    return replace(base, state="unavailable", reason=reason, loaded=None)


def rejected(choice: Choice) -> dict[str, str]:
    return dict(choice.rejected)


def reason_of(resolution: Resolution, name: str) -> str:
    return next(d.reason for d in resolution.decisions if d.name == name)
