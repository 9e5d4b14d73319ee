"""Plugin kinds: one entry-point group per kind, each with its own API version.

A plugin states in its manifest the range of versions it works with. Core speaks N and N-1 of each kind.
A kind is "live" if core selects and calls its plugins. A "draft" kind has a typed interface and a contract suite, and
its plugins are listed, checked and loaded like all others, but no engine calls them yet: a draft interface may still
change without a new version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.interfaces import capabilities as caps


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of plugin.

    name: short name, as in `core plugins list --kind attention`.
    group: entry-point group.
    api: newest interface version that this core speaks.
    oldest_api: oldest one (N-1, or N while there is only one).
    summary: one line for people.
    interface: "module:Class" of the interface, for error texts and documentation.
    stage: "live" or "draft", see above.
    capabilities: schema of the manifest's `[plugin.capabilities]`.
    overrides: whether a plugin for one device wins, on that device, over one of the same name that is for any; names
        of other kinds clash, whatever they run on.
    """

    name: str
    group: str
    api: int
    oldest_api: int
    summary: str
    interface: str
    stage: Literal["live", "draft"] = "live"
    capabilities: type[caps.Stated] = caps.Stated
    overrides: bool = False


def _kind(
    name: str, summary: str, interface: str, capabilities: type[caps.Stated] = caps.Stated, *,
    api: int = 1, oldest_api: int = 1, stage: Literal["live", "draft"] = "live", overrides: bool = False,
) -> Kind:  # fmt: skip
    return Kind(name, f"core.{name}", api, oldest_api, summary, interface, stage, capabilities, overrides)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _kind(
            "models",
            "model architectures, by Hugging Face name",
            "core.interfaces.model:ModelArch",
            caps.StatedModel,
            overrides=True,
        ),
        _kind(
            "attention",
            "attention over the paged KV cache",
            "core.interfaces.attention:AttentionBackend",
            caps.StatedAttention,
        ),
        _kind("quant", "quantization methods", "core.interfaces.quant:QuantMethod", caps.StatedQuant),
        _kind("prefix_cache", "prefix caches", "core.interfaces.prefix_cache:PrefixCache", caps.StatedPrefixCache),
        _kind("tool_parsers", "tool-call formats", "core.interfaces.parsers:ToolParser", caps.StatedParser),
        _kind("reasoning_parsers", "reasoning formats", "core.interfaces.parsers:ReasoningParser"),
        _kind("hardware", "devices", "core.interfaces.hardware:HardwareBackend", caps.StatedHardware),
        _kind("moe", "mixture-of-experts runners", "core.interfaces.moe:MoeRunner", caps.StatedMoe),
        _kind("ops", "tables of fused operations", "core.interfaces.ops:OpTable", caps.StatedOps),
        _kind(
            "schedule_policies",
            "orders of waiting requests",
            "core.interfaces.schedule:SchedulePolicy",
            caps.StatedSchedulePolicy,
        ),
        _kind(
            "checkpoints",
            "checkpoints shipped as packages",
            "core.interfaces.checkpoint:BundledCheckpoint",
            caps.StatedCheckpoint,
        ),
        _kind("commands", "extra sub-commands (a typer.Typer)", "typer:Typer"),
        _kind("routes", "extra HTTP routes, on only if named", "core.interfaces.routes:RoutePlugin"),
        _kind("hooks", "listeners to what the engine does", "core.interfaces.hooks:HookPlugin"),
        _kind("grammar", "structured output", "core.interfaces.grammar:GrammarBackend", caps.StatedGrammar),
        _kind(
            "logit_processors",
            "editors of logits, on only if named",
            "core.interfaces.logit_processors:LogitProcessor",
            caps.StatedLogitProcessor,
        ),
        _kind(
            "speculative",
            "proposers of draft tokens",
            "core.interfaces.speculative:Speculator",
            caps.StatedSpeculator,
            stage="draft",
        ),
        _kind(
            "kv_transport",
            "KV pages between engines",
            "core.interfaces.kv_transport:KvTransport",
            caps.StatedStore,
            stage="draft",
        ),
        _kind(
            "kv_store", "KV pages in slower memory", "core.interfaces.kv_store:KvStore", caps.StatedStore, stage="draft"
        ),
        _kind("pipelines", "diffusion pipelines", "core.interfaces.pipelines:Pipeline", stage="draft"),
    )
}
