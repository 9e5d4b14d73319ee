"""Plugin kinds: one entry-point group per kind, each with its own API version.

A plugin states in its manifest the range of versions it works with. Core speaks N and N-1 of each kind.
Kinds listed in `RESERVED_KINDS` have a name but no interface yet; a distribution that registers one is
reported as "needs a newer core".
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of plugin.

    name: short name, as in `core plugins list --kind attention`.
    group: entry-point group.
    api: newest interface version that this core speaks.
    oldest_api: oldest one (N-1, or N while there is only one).
    summary: one line for people.
    interface: "module:Class" of the interface, for error texts and documentation.
    """

    name: str
    group: str
    api: int
    oldest_api: int
    summary: str
    interface: str


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("models", "core.models", 1, 1, "model architectures, by Hugging Face name",
             "core.interfaces.model:ModelArch"),
        Kind("attention", "core.attention", 1, 1, "attention over the paged KV cache",
             "core.interfaces.attention:AttentionBackend"),
        Kind("quant", "core.quant", 1, 1, "quantization methods", "core.interfaces.quant:QuantMethod"),
        Kind("prefix_cache", "core.prefix_cache", 1, 1, "prefix caches",
             "core.interfaces.prefix_cache:PrefixCache"),
        Kind("tool_parsers", "core.tool_parsers", 1, 1, "tool-call formats",
             "core.interfaces.parsers:ToolParser"),
        Kind("reasoning_parsers", "core.reasoning_parsers", 1, 1, "reasoning formats",
             "core.interfaces.parsers:ReasoningParser"),
        Kind("hardware", "core.hardware", 1, 1, "devices", "core.interfaces.hardware:HardwareBackend"),
        Kind("moe", "core.moe", 1, 1, "mixture-of-experts runners", "core.interfaces.moe:MoeRunner"),
        Kind("ops", "core.ops", 1, 1, "tables of fused operations", "core.interfaces.ops:OpTable"),
        Kind("checkpoints", "core.checkpoints", 1, 1, "checkpoints shipped as packages",
             "core.interfaces.checkpoint:BundledCheckpoint"),
        Kind("commands", "core.commands", 1, 1, "extra sub-commands (a typer.Typer)", "typer:Typer"),
    )
}  # fmt: skip

RESERVED_KINDS: dict[str, str] = {
    "grammar": "core.grammar",
    "speculative": "core.speculative",
    "kv_transport": "core.kv_transport",
    "kv_store": "core.kv_store",
    "pipelines": "core.pipelines",
    "routes": "core.routes",
    "hooks": "core.hooks",
}
