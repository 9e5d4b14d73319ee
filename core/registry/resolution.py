"""Resolution: everything that was decided before an engine is built, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from core.interfaces.hardware import EngineFacts
from core.interfaces.model import ModelArch
from core.interfaces.pooling import PoolingPlan
from core.interfaces.spec import ModelDefaults, ModelSpec
from core.registry.catalog import Catalog
from core.registry.checkpoint import quantization_of
from core.registry.context import plugin_context
from core.registry.lock import LockSet
from core.registry.records import PluginRecord


@dataclass(frozen=True, slots=True)
class Choice:
    """One plugin picked by name.

    target: its class or callable; None (with record None and name "none") where nothing is used.
    rejected: (name, why) of those that were considered and not taken.
    """

    kind: str
    name: str
    record: PluginRecord | None
    target: Any
    reason: str
    rejected: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """One value that is no plugin: dtype, page size and the like."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class ExplainRow:
    """One line of `core plugins explain`. kind, plugin: of a choice, "" of other decisions; plugin is the chosen one's
    `distribution:name`."""

    what: str
    chosen: str
    reason: str
    rejected: tuple[tuple[str, str], ...] = ()
    kind: str = ""
    plugin: str = ""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What an engine is built from. Same settings and same environment give the same resolution.

    checkpoint: folder. hf_config: config.json. arch: the architecture's class. dtype: compute type, e.g.
    "bfloat16". attention: one choice a cache group, in the spec's order. ops: tables in merge order, a later one
    wins. chunk_tokens: token budget of a step. overlap: whether step n+1 is scheduled while n runs.
    tool_parser, reasoning_parser, grammar: target None when off. logit_processors: that requests may name. hooks:
    listeners in the order they are called. routes: extra routes; target None in a process that serves none. pooling:
    what is given beside text. spec: as the model is built.
    kv_cache_dtype: as `KV_DTYPES` names it, or the compute type. kv_scales: for each rank, of cached keys and values by
    layer, where the operator gave them.
    plugin_settings: each chosen plugin's own settings, by `kind/distribution:name`, for `plugin_context`.
    warnings: of the chosen plugins, and settings that have no effect; logged by the parent.
    """

    checkpoint: Path
    checkpoint_choice: Choice
    hf_config: Mapping[str, Any]
    model: Choice
    arch: type[ModelArch]
    spec: ModelSpec
    defaults: ModelDefaults
    hardware: Choice
    quant: Choice
    attention: tuple[Choice, ...]
    prefix_cache: Choice
    moe: Choice
    schedule_policy: Choice
    ops: tuple[Choice, ...]
    tool_parser: Choice
    reasoning_parser: Choice
    dtype: str
    page_size: int
    context_length: int
    chunk_tokens: int
    overlap: bool
    grammar: Choice = Choice("grammar", "none", None, None, "not chosen")
    logit_processors: tuple[Choice, ...] = ()
    hooks: tuple[Choice, ...] = ()
    routes: tuple[Choice, ...] = ()
    decisions: tuple[Decision, ...] = ()
    ops_rejected: tuple[tuple[str, str], ...] = ()
    hooks_rejected: tuple[tuple[str, str], ...] = ()
    pooling: PoolingPlan = field(default_factory=PoolingPlan)
    plugin_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tensor_parallel_size: int = 1
    max_running: int = 256
    kv_cache_dtype: str = "auto"
    kv_scales: tuple[Mapping[int, tuple[float, float]], ...] = ()
    warnings: tuple[str, ...] = ()

    def with_plugin_data(
        self, plugin_settings: Mapping[str, Mapping[str, Any]], catalog: Catalog, warnings: Iterable[str]
    ) -> Resolution:
        """With the chosen plugins' settings, their records as they are after the import (which may add warnings to
        them), and all warnings, those of the plugins first."""

        def fresh(choice: Choice) -> Choice:
            if choice.record is None:
                return choice
            return replace(choice, record=catalog.lookup(choice.kind, choice.record.full_name))

        changed: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Choice):
                changed[entry.name] = fresh(value)
            elif isinstance(value, tuple) and value and all(isinstance(item, Choice) for item in value):
                changed[entry.name] = tuple(fresh(item) for item in value)
        resolution = replace(self, plugin_settings=plugin_settings, **changed)
        records = [choice.record for choice in resolution.choices() if choice.record is not None]
        own = [f"{record.title}: {text}" for record in records for text in record.warnings]
        return replace(resolution, warnings=tuple(dict.fromkeys((*own, *warnings))))

    @property
    def facts(self) -> EngineFacts:
        """What the device's plugin is told before anything is built."""
        return EngineFacts(
            spec=self.spec,
            dtype=self.dtype,
            attention=tuple(choice.name for choice in self.attention),
            quantization=self.quant.name,
            moe=self.moe.name,
            page_size=self.page_size,
            context_length=self.context_length,
            max_seqs=self.max_running,
            max_tokens=max(self.chunk_tokens, self.max_running),
            tensor_parallel_size=self.tensor_parallel_size,
            overlap=self.overlap,
            prefix_cache=self.prefix_cache.name,
            schedule_policy=self.schedule_policy.name,
        )

    def choices(self) -> Iterator[Choice]:
        """Every choice, in the order they were made."""
        yield self.checkpoint_choice
        yield self.model
        yield self.hardware
        yield self.quant
        yield from self.attention
        yield self.prefix_cache
        yield self.moe
        yield self.schedule_policy
        yield from self.ops
        yield self.tool_parser
        yield self.reasoning_parser
        yield self.grammar
        yield from self.logit_processors
        yield from self.hooks
        yield from self.routes

    def parser_factory(self, choice: Choice) -> Callable[[], Any] | None:
        """Makes the chosen parser, with its own settings; None where it is off. Raises ConfigError for wrong ones."""
        if choice.record is None:
            return None
        return partial(choice.target, plugin_context(choice.record, self.plugin_settings))

    @property
    def quant_config(self) -> Mapping[str, Any] | None:
        """The checkpoint's quantization_config, as a quantization method is constructed with; None if it has none."""
        return quantization_of(self.hf_config)

    def lock(self) -> LockSet:
        """The chosen plugins, for child processes to verify."""
        return LockSet.of(choice.record for choice in self.choices() if choice.record is not None)

    @property
    def effective(self) -> dict[str, str]:
        """What is in effect, flat, for logs, `/server_info` and the comparison with what was asked for."""
        return {
            "model": str(self.checkpoint),
            "architecture": self.spec.architecture,
            "device": self.hardware.name,
            "dtype": self.dtype,
            "kv_cache_dtype": self.kv_cache_dtype,
            "quantization": self.quant.name,
            "attention_backend": self._attention_text(),
            "prefix_cache": self.prefix_cache.name,
            "moe_backend": self.moe.name,
            "schedule_policy": self.schedule_policy.name,
            "ops": ",".join(choice.name for choice in self.ops) or "none",
            "page_size": str(self.page_size),
            "context_length": str(self.context_length),
            "chunk_tokens": str(self.chunk_tokens),
            "overlap": "on" if self.overlap else "off",
            "tensor_parallel_size": str(self.tensor_parallel_size),
            "task": self.pooling.shown_task,
            "pooling": self.pooling.pooling or "none",
            "tool_call_parser": self.tool_parser.name,
            "reasoning_parser": self.reasoning_parser.name,
            "grammar_backend": self.grammar.name,
            "logit_processors": ",".join(choice.name for choice in self.logit_processors) or "none",
            "hooks": ",".join(choice.name for choice in self.hooks) or "none",
            "routes": ",".join(choice.name for choice in self.routes) or "none",
        }

    def _attention_text(self) -> str:
        names = [choice.name for choice in self.attention]
        if len(set(names)) <= 1:
            return names[0] if names else "none"
        return ",".join(f"{g.name}={name}" for g, name in zip(self.spec.cache_groups, names, strict=True))

    def explain(self) -> list[ExplainRow]:
        """Every choice and decision with its reason, for `core plugins explain`."""
        rows = [
            row_of("checkpoint", self.checkpoint_choice),
            row_of("model", self.model),
            row_of("hardware", self.hardware),
            row_of("quantization", self.quant),
        ]
        for group, choice in zip(self.spec.cache_groups, self.attention, strict=True):
            label = "attention" if len(self.attention) == 1 else f"attention ({group.name})"
            rows.append(row_of(label, choice))
        rows += [row_of("prefix cache", self.prefix_cache), row_of("mixture of experts", self.moe)]
        rows.append(row_of("schedule policy", self.schedule_policy))
        rows += [row_of("ops", choice) for choice in self.ops]
        if self.ops_rejected or not self.ops:
            rows.append(
                ExplainRow("ops", "core's references", "for every operation no table offers", self.ops_rejected, "ops")
            )
        rows += [row_of("tool-call parser", self.tool_parser), row_of("reasoning parser", self.reasoning_parser)]
        rows.append(row_of("grammar backend", self.grammar))
        rows += [row_of("logit processors", choice) for choice in self.logit_processors]
        rows += [row_of("hooks", choice) for choice in self.hooks]
        if self.hooks_rejected or not self.hooks:
            why = "these cannot be used" if self.hooks_rejected else "none is installed, or they are turned off"
            rows.append(ExplainRow("hooks", "no other" if self.hooks else "none", why, self.hooks_rejected, "hooks"))
        rows += [row_of("routes", choice) for choice in self.routes]
        rows += [row_of(d.name, d) for d in self.decisions]
        return rows


def row_of(what: str, made: Choice | Decision) -> ExplainRow:
    """One line of `explain`."""
    if isinstance(made, Decision):
        return ExplainRow(made.name, made.value, made.reason)
    if made.record is None:
        return ExplainRow(what, made.name, made.reason, made.rejected, made.kind)
    origin = f" ({made.record.distribution} {made.record.version})"
    return ExplainRow(what, f"{made.name}{origin}", made.reason, made.rejected, made.kind, made.record.full_name)
