"""resolve: from settings and installed plugins to one Resolution. Runs in the parent, before anything is built.

Order matters and is the order below: checkpoint, architecture, device, quantization, dtype, lengths, attention
with the page size, prefix cache, experts, op tables, parsers, overlap. Only plugins that are considered are
imported.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from core.interfaces.errors import CheckpointError, ConfigError, CoreError, PluginLoadError
from core.interfaces.quant import QuantFacts
from core.interfaces.spec import ModelDefaults, ModelSpec
from core.registry.candidates import wrong_hardware
from core.registry.catalog import Catalog
from core.registry.checkpoint import KIND as CHECKPOINTS
from core.registry.checkpoint import (
    FoundCheckpoint,
    find_checkpoint,
    quantization_of,
    read_hf_config,
    stated_checkpoint,
)
from core.registry.context import plugin_context
from core.registry.lock import LockSet
from core.registry.resolution import Choice, Decision, Resolution
from core.registry.select_attention import choose_attention
from core.registry.select_device import choose_dtype, choose_hardware, choose_overlap, make_hardware
from core.registry.select_others import (
    NO_PLUGIN,
    choose_model,
    choose_moe,
    choose_ops,
    choose_parser,
    choose_prefix_cache,
    choose_quant,
    choose_schedule_policy,
)

if TYPE_CHECKING:
    from core.config.sections import Settings


def resolve(settings: Settings, catalog: Catalog, lock: LockSet | None = None) -> Resolution:
    """Decide everything. Raises the CoreError that stops the start: ConfigError, CheckpointError or a
    PluginError naming distribution and cause.

    lock: in a child process, the parent's lock set; raises PluginMismatch if this process would choose otherwise.
    """
    if lock is not None:
        lock.verify(catalog)
    _check_plugin_sections(settings, catalog)

    found = find_checkpoint(settings.model.model, catalog)
    config = read_hf_config(found.folder)
    checkpoint = Choice(
        CHECKPOINTS,
        found.record.name if found.record is not None else str(found.folder),
        found.record,
        found.target,
        found.reason,
    )
    model = choose_model(config, found.folder, catalog)
    spec: ModelSpec = _ask_model(model, "read config.json", model.target.spec, config)
    hardware = choose_hardware(settings.engine.device, catalog)
    defaults: ModelDefaults = _ask_model(model, "state its defaults", model.target.defaults, spec, hardware.name)
    quant = choose_quant(settings.model.quantization, quantization_of(config), hardware.name, catalog)
    dtype = choose_dtype(settings.model.dtype, config, spec.dtype, hardware)
    context = _context_length(settings.model.context_length, spec)

    assert hardware.choice.record is not None
    instance = make_hardware(hardware, plugin_context(hardware.choice.record, settings.plugins))
    wish, wish_reason = hardware.capabilities.page_size, f"preferred by {hardware.name}"
    if defaults.page_size is not None:
        wish, wish_reason = defaults.page_size, "preferred by the model"
    attention, page_size = choose_attention(
        settings.engine.attention_backend,
        {"the model": defaults.attention, hardware.name: tuple(instance.preferred_attention(spec))},
        spec,
        dtype=dtype.value,
        hardware=hardware.name,
        page_size=settings.cache.page_size,
        wished_page_size=wish,
        wish_reason=wish_reason,
        catalog=catalog,
    )
    ops, ops_rejected = choose_ops(hardware.name, catalog)
    chunk = _chunk_tokens(settings.scheduler.chunked_prefill_size, hardware.capabilities.chunk_tokens, hardware.name)
    overlap = choose_overlap(settings.engine.overlap, hardware)
    wishes = _parser_wishes(found, defaults)
    resolution = Resolution(
        checkpoint=found.folder,
        checkpoint_choice=checkpoint,
        hf_config=config,
        model=model,
        arch=model.target,
        spec=spec,
        defaults=defaults,
        hardware=hardware.choice,
        quant=quant,
        attention=attention,
        prefix_cache=_prefix_cache(settings, spec, catalog, parent=lock is None),
        moe=choose_moe(settings.engine.moe_backend, hardware.name, catalog),
        schedule_policy=choose_schedule_policy(settings.scheduler.schedule_policy, hardware.name, catalog),
        ops=ops,
        tool_parser=choose_parser(
            "tool_parsers", "model.tool_call_parser", settings.model.tool_call_parser, wishes["tool_parser"], catalog
        ),
        reasoning_parser=choose_parser(
            "reasoning_parsers", "model.reasoning_parser", settings.model.reasoning_parser,
            wishes["reasoning_parser"], catalog,
        ),
        dtype=dtype.value,
        page_size=int(page_size.value),
        context_length=int(context.value),
        chunk_tokens=int(chunk.value),
        overlap=overlap.value == "on",
        decisions=(dtype, page_size, context, chunk, overlap),
        ops_rejected=tuple(ops_rejected),
        plugin_settings=settings.plugins,
        tensor_parallel_size=settings.engine.tensor_parallel_size,
        max_running=settings.scheduler.max_running_requests,
    )  # fmt: skip
    _check_hardware(resolution)
    _check_quant(resolution)
    why = instance.rejects(resolution.facts)
    if why:
        raise ConfigError(
            f"device {hardware.name!r} cannot run this: {why}",
            field="engine.device",
            value=hardware.name,
            hint="change what is named above, or choose another with --device",
        )
    if lock is not None:
        lock.check_same(resolution.lock())
    return resolution


def _parser_wishes(found: FoundCheckpoint, defaults: ModelDefaults) -> dict[str, str | None]:
    """Parsers that the checkpoint's package names in its manifest, else those that the architecture prefers.

    Only a package that the operator installed may name a plugin; files of a checkpoint may not.
    """
    wishes: dict[str, str | None] = {"tool_parser": defaults.tool_parser, "reasoning_parser": defaults.reasoning_parser}
    if found.record is not None:
        stated = stated_checkpoint(found.record)
        wishes |= {name: getattr(stated, name) for name in wishes if getattr(stated, name) is not None}
    return wishes


def _ask_model(model: Choice, what: str, call: Any, *args: Any) -> Any:
    """Call into the architecture; anything but a CoreError becomes one that names it."""
    try:
        return call(*args)
    except CoreError:
        raise
    except Exception as exc:
        title = model.record.title if model.record is not None else model.name
        raise CheckpointError(
            f"{title} could not {what}: {type(exc).__name__}: {exc}",
            hint="is config.json complete, and written for this architecture?",
        ) from exc


def _check_hardware(resolution: Resolution) -> None:
    """Plugins that were not picked among several (a model, a parser) may still need another device."""
    name = resolution.hardware.name
    for choice in resolution.choices():
        why = wrong_hardware(choice.record, name) if choice.record is not None else ""
        if choice.record is not None and why:
            raise ConfigError(
                f"device is {name!r}, but {choice.record.title} cannot be used there: {why}",
                field="engine.device",
                value=name,
                hint="choose another with --device",
            )


def _check_quant(resolution: Resolution) -> None:
    """The chosen method must be able to serve the model. It is asked here, before anything is loaded."""
    choice = resolution.quant
    assert choice.record is not None
    ctx = plugin_context(choice.record, resolution.plugin_settings)
    try:
        method = choice.target(resolution.quant_config, ctx)
        facts = QuantFacts(
            resolution.spec, resolution.dtype, resolution.hardware.name, resolution.tensor_parallel_size,
            resolution.moe.target,
        )  # fmt: skip
        why = method.rejects(facts)
    except CoreError:
        raise
    except Exception as exc:
        raise PluginLoadError(
            f"{choice.record.title} could not be set up: {type(exc).__name__}: {exc}",
            hint="choose another method with --quantization",
        ) from exc
    if why:
        raise ConfigError(
            f"quantization {choice.name!r} cannot serve {resolution.spec.architecture}: {why}",
            field="model.quantization",
            value=choice.name,
            hint="choose another method with --quantization, or an unquantized checkpoint",
        )


def _context_length(asked: int | None, spec: ModelSpec) -> Decision:
    if asked is None:
        return Decision("context length", str(spec.context_length), "the model's")
    if asked > spec.context_length:
        raise ConfigError(
            f"context_length is {asked}, but {spec.architecture} was made for at most {spec.context_length} tokens",
            field="model.context_length",
            value=asked,
            hint=f"use --context-length {spec.context_length} or less",
        )
    return Decision("context length", str(asked), "asked for")


def _chunk_tokens(asked: int | None, preferred: int, hardware: str) -> Decision:
    if asked is not None:
        return Decision("step token budget", str(asked), "asked for")
    return Decision("step token budget", str(preferred), f"preferred by {hardware}")


def _prefix_cache(settings: Settings, spec: ModelSpec, catalog: Catalog, *, parent: bool) -> Choice:
    cache = settings.cache
    # Settings that crossed a process boundary no longer know which fields were given. A child needs no such
    # knowledge: the parent has made the check, and the lock set tells whether the child chose the same.
    explicit = parent and "prefix_cache" in cache.model_fields_set
    if not cache.disable_radix_cache:
        return choose_prefix_cache(cache.prefix_cache, explicit, spec, catalog)
    if explicit and cache.prefix_cache != NO_PLUGIN:
        raise ConfigError(
            f"disable_radix_cache is set, but prefix_cache is {cache.prefix_cache!r}",
            field="cache.disable_radix_cache",
            value=True,
            hint="leave one of them out",
        )
    return choose_prefix_cache(NO_PLUGIN, True, spec, catalog)


def _check_plugin_sections(settings: Settings, catalog: Catalog) -> None:
    """Settings for a plugin that is not installed are a mistake, most often a misspelt name."""
    for key in settings.plugins:
        if any(record.answers_to(key) for record in catalog.records):
            continue
        names = sorted({record.name for record in catalog.records})
        close = difflib.get_close_matches(key, names, n=1)
        raise ConfigError(
            f"plugins.{key} has settings, but no installed plugin is called {key!r}",
            field=f"plugins.{key}",
            value=dict(settings.plugins[key]),
            hint=f"did you mean {close[0]!r}?" if close else "`core plugins list` shows the names",
        )
