"""resolve: from settings and installed plugins to one Resolution. Runs in the parent, before anything is built.

Order matters and is that of `STEPS`: each small step reads what earlier ones decided and writes one decision. Only
plugins that are considered are imported. `core plugins explain` follows the same steps through a `Trace`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from core.interfaces.errors import CheckpointError, ConfigError, CoreError
from core.interfaces.hardware import HardwareBackend
from core.interfaces.pooling import PoolingPlan
from core.interfaces.spec import ModelDefaults, ModelSpec
from core.registry.catalog import Catalog
from core.registry.checkpoint import KIND as CHECKPOINTS
from core.registry.checkpoint import (
    FoundCheckpoint,
    find_checkpoint,
    quantization_of,
    read_hf_config,
    stated_checkpoint,
)
from core.registry.checks import (
    check_deterministic,
    check_device,
    check_device_of_all,
    check_quant,
    check_ranks,
    check_requested,
    describe_ranks,
)
from core.registry.context import plugin_context
from core.registry.kv_scales_file import read_kv_scales
from core.registry.lock import LockSet
from core.registry.resolution import Choice, Decision, ExplainRow, Resolution, row_of
from core.registry.sections import PluginSections
from core.registry.select_attention import choose_attention
from core.registry.select_device import ChosenHardware, choose_dtype, choose_hardware, choose_overlap, make_hardware
from core.registry.select_grammar import choose_grammar
from core.registry.select_kv_dtype import (
    COMPUTE_TYPE,
    asked_kv_dtype,
    decided,
    has_scales,
    is_known,
    scales_decision,
    wished_kv_dtype,
)
from core.registry.select_listeners import choose_hooks, choose_routes
from core.registry.select_model import choose_model
from core.registry.select_others import (
    NO_PLUGIN,
    choose_moe,
    choose_ops,
    choose_parser,
    choose_prefix_cache,
    choose_quant,
    choose_schedule_policy,
)
from core.registry.select_processors import choose_logit_processors
from core.registry.select_task import choose_task

if TYPE_CHECKING:
    from core.config.sections import SchedulerSettings, Settings

_LOG = logging.getLogger("core.registry")


@dataclass(slots=True)
class Trace:
    """How far `resolve` came, for those who want to know why it stopped. step: the one that runs or failed.
    catalog: the one in use, in which plugins may be turned off."""

    rows: list[ExplainRow] = field(default_factory=list)
    step: str = ""
    catalog: Catalog | None = None


@dataclass(slots=True)
class _Draft:
    """What is decided so far. Fields below the inputs are set by the step of that name."""

    settings: Settings
    catalog: Catalog
    parent: bool
    trace: Trace
    sections: PluginSections = field(init=False)
    found: FoundCheckpoint = field(init=False)
    checkpoint: Choice = field(init=False)
    config: dict[str, Any] = field(init=False)
    hardware: ChosenHardware = field(init=False)
    device: HardwareBackend = field(init=False)
    model: Choice = field(init=False)
    spec: ModelSpec = field(init=False)
    defaults: ModelDefaults = field(init=False)
    pooling: PoolingPlan = field(init=False)
    task_decisions: tuple[Decision, ...] = field(init=False)
    quant: Choice = field(init=False)
    dtype: Decision = field(init=False)
    context: Decision = field(init=False)
    attention: tuple[Choice, ...] = field(init=False)
    page_size: Decision = field(init=False)
    kv_dtype: Decision = field(init=False)
    kv_scales_from: Decision | None = field(init=False)
    kv_scales: tuple[Mapping[int, tuple[float, float]], ...] = field(init=False, default=())
    prefix_cache: Choice = field(init=False)
    moe: Choice = field(init=False)
    schedule_policy: Choice = field(init=False)
    ops: tuple[Choice, ...] = field(init=False)
    ops_rejected: list[tuple[str, str]] = field(init=False)
    chunk: Decision = field(init=False)
    overlap: Decision = field(init=False)
    tool_parser: Choice = field(init=False)
    reasoning_parser: Choice = field(init=False)
    grammar: Choice = field(init=False)
    logit_processors: tuple[Choice, ...] = field(init=False)
    hooks: tuple[Choice, ...] = field(init=False)
    hooks_rejected: list[tuple[str, str]] = field(init=False)
    routes: tuple[Choice, ...] = field(init=False)


def resolve(
    settings: Settings, catalog: Catalog, lock: LockSet | None = None, *, trace: Trace | None = None
) -> Resolution:
    """Decide everything. Raises the CoreError that stops the start: ConfigError, CheckpointError or a
    PluginError naming distribution and cause.

    lock: in a child process, the parent's lock set; raises PluginMismatch if this process would choose otherwise.
    trace: is filled as the steps go, and keeps what was decided if one of them raises.
    """
    trace = trace if trace is not None else Trace()
    trace.step, trace.catalog = "disabled plugins", catalog
    trace.catalog = catalog = catalog.without(settings.engine.disable_plugins)
    if lock is not None:
        lock.verify(catalog)
    draft = _Draft(settings, catalog, parent=lock is None, trace=trace)
    for name, step in STEPS:
        trace.step = name
        trace.rows += [row_of(name, made) for made in step(draft)]
    trace.step = "checks"
    resolution = _finish(draft)
    if lock is not None:
        lock.check_same(resolution.lock())
    else:
        for warning in resolution.warnings:
            _LOG.warning("%s", warning)
    return resolution


Made = tuple[Choice | Decision, ...]


def _settings_of_plugins(draft: _Draft) -> Made:
    draft.sections = PluginSections(draft.settings, draft.catalog)
    return ()


def _checkpoint(draft: _Draft) -> Made:
    draft.found = found = find_checkpoint(draft.settings.model.model, draft.catalog)
    name = found.record.name if found.record is not None else str(found.folder)
    draft.checkpoint = Choice(CHECKPOINTS, name, found.record, found.target, found.reason)
    draft.config = read_hf_config(found.folder)
    return (draft.checkpoint,)


def _hardware(draft: _Draft) -> Made:
    draft.hardware = choose_hardware(draft.settings.engine.device, draft.catalog)
    record = draft.hardware.choice.record
    assert record is not None
    draft.device = make_hardware(draft.hardware, plugin_context(record, draft.sections.exact([record])))
    return (draft.hardware.choice,)


def _model(draft: _Draft) -> Made:
    asked = draft.settings.model.model_plugin
    draft.model = model = choose_model(draft.config, draft.found.folder, draft.catalog, draft.hardware.name, asked)
    draft.spec = _ask_model(model, "read config.json", model.target.spec, draft.config)
    draft.defaults = _ask_model(
        model, "state its defaults", model.target.defaults, draft.spec, draft.hardware.name
    )  # fmt: skip
    return (model,)


def _task(draft: _Draft) -> Made:
    draft.pooling, decisions = choose_task(draft.settings.model, draft.spec, draft.config, draft.found.folder)
    draft.spec = replace(draft.spec, task=draft.pooling.task)
    draft.task_decisions = decisions
    return decisions


def _quant(draft: _Draft) -> Made:
    asked, stated = draft.settings.model.quantization, quantization_of(draft.config)
    draft.quant = choose_quant(asked, stated, draft.hardware.name, draft.catalog)
    return (draft.quant,)


def _sizes(draft: _Draft) -> Made:
    settings, hardware = draft.settings, draft.hardware
    draft.dtype = choose_dtype(settings.model.dtype, draft.config, draft.spec.dtype, hardware)
    draft.context = _context_length(settings.model.context_length, draft.spec)
    draft.chunk = _chunk_tokens(settings.scheduler, hardware)
    draft.overlap = choose_overlap(settings.engine.overlap, hardware)
    return (draft.dtype, draft.context, draft.chunk, draft.overlap)


def _attention(draft: _Draft) -> Made:
    name = draft.hardware.name
    wish, wish_reason = draft.hardware.capabilities.page_size, f"preferred by {name}"
    if draft.defaults.page_size is not None:
        wish, wish_reason = draft.defaults.page_size, "preferred by the model"
    dtype = draft.dtype.value
    choose = partial(
        choose_attention,
        draft.settings.engine.attention_backend,
        {"the model": draft.defaults.attention, name: tuple(draft.device.preferred_attention(draft.spec))},
        draft.spec,
        dtype=dtype,
        hardware=name,
        page_size=draft.settings.cache.page_size,
        wished_page_size=wish,
        wish_reason=wish_reason,
        catalog=draft.catalog,
        invariant=draft.settings.engine.deterministic,
    )
    kv_dtype, why = asked_kv_dtype(draft.settings.cache.kv_cache_dtype, dtype), "asked for"
    if draft.settings.cache.kv_cache_dtype == COMPUTE_TYPE:
        kv_dtype, why = _stated_kv_dtype(draft)
    try:
        draft.attention, draft.page_size = choose(kv_dtype=kv_dtype)
    except ConfigError as error:
        if why == "asked for" or kv_dtype == COMPUTE_TYPE:
            raise
        # A wider cache than the checkpoint was made for only costs memory.
        draft.attention, draft.page_size = choose()
        kv_dtype, why = COMPUTE_TYPE, f"the compute type; the checkpoint asks for {kv_dtype}: {error.message}"
    draft.kv_dtype = decided(kv_dtype, dtype, why)
    rows: Made = (*draft.attention, draft.page_size, draft.kv_dtype)
    return rows if (scales := _kv_scales(draft)) is None else (*rows, scales)


def _kv_scales(draft: _Draft) -> Decision | None:
    """Read the operator's file, whatever the cache is: mistakes in it are found at the first start."""
    file, num_ranks = draft.settings.cache.kv_scales_file, draft.settings.engine.tensor_parallel_size
    draft.kv_scales_from = scales_decision(draft.kv_dtype.value, file, draft.quant)
    if file is not None:
        read = read_kv_scales(file, draft.spec, draft.config.get("model_type"), num_ranks)
        draft.kv_scales = read if has_scales(draft.kv_dtype.value) else ()
    return draft.kv_scales_from


def _stated_kv_dtype(draft: _Draft) -> tuple[str, str]:
    """What the checkpoint asks for, and the reason for people."""
    dtype, quant, record = draft.dtype.value, draft.quant, draft.quant.record
    assert record is not None
    ctx = plugin_context(record, draft.sections.exact([record]))
    wish = wished_kv_dtype(quant, lambda: quant.target(quantization_of(draft.config), ctx))
    if wish in (COMPUTE_TYPE, dtype):
        return COMPUTE_TYPE, "the compute type"
    if not is_known(wish):
        return COMPUTE_TYPE, f"the compute type; the checkpoint asks for {wish}, which core does not know"
    return wish, "the checkpoint asks for it"


def _prefix_cache(draft: _Draft) -> Made:
    cache = draft.settings.cache
    asked, explicit = cache.prefix_cache, _explicit_cache(draft)
    if cache.disable_radix_cache:
        if explicit and asked != NO_PLUGIN:
            raise ConfigError(
                f"disable_radix_cache is set, but prefix_cache is {asked!r}",
                field="cache.disable_radix_cache",
                value=True,
                hint="leave one of them out",
            )
        asked, explicit = NO_PLUGIN, True
    draft.prefix_cache = choose_prefix_cache(asked, explicit, draft.spec, draft.catalog)
    return (draft.prefix_cache,)


def _moe(draft: _Draft) -> Made:
    draft.moe = choose_moe(draft.settings.engine.moe_backend, draft.hardware.name, draft.catalog)
    return (draft.moe,)


def _schedule_policy(draft: _Draft) -> Made:
    asked = draft.settings.scheduler.schedule_policy
    draft.schedule_policy = choose_schedule_policy(asked, draft.hardware.name, draft.catalog)
    return (draft.schedule_policy,)


def _ops(draft: _Draft) -> Made:
    draft.ops, draft.ops_rejected = choose_ops(draft.hardware.name, draft.catalog)
    return draft.ops


def _tool_parser(draft: _Draft) -> Made:
    wish = _parser_wishes(draft.found, draft.defaults)["tool_parser"]
    asked = draft.settings.model.tool_call_parser
    draft.tool_parser = choose_parser("tool_parsers", "model.tool_call_parser", asked, wish, draft.catalog)
    return (draft.tool_parser,)


def _reasoning_parser(draft: _Draft) -> Made:
    wish = _parser_wishes(draft.found, draft.defaults)["reasoning_parser"]
    asked = draft.settings.model.reasoning_parser
    draft.reasoning_parser = choose_parser("reasoning_parsers", "model.reasoning_parser", asked, wish, draft.catalog)
    return (draft.reasoning_parser,)


def _grammar(draft: _Draft) -> Made:
    draft.grammar = choose_grammar(draft.settings.engine.grammar_backend, draft.hardware.name, draft.catalog)
    return (draft.grammar,)


def _logit_processors(draft: _Draft) -> Made:
    draft.logit_processors = choose_logit_processors(draft.settings.engine.logit_processors, draft.catalog)
    return draft.logit_processors


def _hooks(draft: _Draft) -> Made:
    draft.hooks, draft.hooks_rejected = choose_hooks(
        draft.settings.engine.hooks, draft.hardware.name, draft.catalog, warn=draft.parent
    )
    return draft.hooks


def _routes(draft: _Draft) -> Made:
    draft.routes = choose_routes(draft.settings.server.routes, draft.catalog, load=draft.parent)
    return draft.routes


STEPS: tuple[tuple[str, Callable[[_Draft], Made]], ...] = (
    ("settings of plugins", _settings_of_plugins),
    ("checkpoint", _checkpoint),
    ("hardware", _hardware),
    ("model", _model),
    ("task", _task),
    ("quantization", _quant),
    ("sizes", _sizes),
    ("attention", _attention),
    ("prefix cache", _prefix_cache),
    ("mixture of experts", _moe),
    ("schedule policy", _schedule_policy),
    ("ops", _ops),
    ("tool-call parser", _tool_parser),
    ("reasoning parser", _reasoning_parser),
    ("grammar backend", _grammar),
    ("logit processors", _logit_processors),
    ("hooks", _hooks),
    ("routes", _routes),
)


def _finish(draft: _Draft) -> Resolution:
    """Put the decisions together and check the whole."""
    kv = (draft.kv_dtype, *((draft.kv_scales_from,) if draft.kv_scales_from is not None else ()))
    sizes = (draft.dtype, *kv, draft.page_size, draft.context, draft.chunk, draft.overlap)
    num_ranks = draft.settings.engine.tensor_parallel_size
    ranks = describe_ranks(num_ranks, draft.device.communicator())
    resolution = Resolution(
        checkpoint=draft.found.folder,
        checkpoint_choice=draft.checkpoint,
        hf_config=draft.config,
        model=draft.model,
        arch=draft.model.target,
        spec=draft.spec,
        defaults=draft.defaults,
        hardware=draft.hardware.choice,
        quant=draft.quant,
        attention=draft.attention,
        prefix_cache=draft.prefix_cache,
        moe=draft.moe,
        schedule_policy=draft.schedule_policy,
        ops=draft.ops,
        tool_parser=draft.tool_parser,
        reasoning_parser=draft.reasoning_parser,
        grammar=draft.grammar,
        logit_processors=draft.logit_processors,
        hooks=draft.hooks,
        routes=draft.routes,
        dtype=draft.dtype.value,
        page_size=int(draft.page_size.value),
        kv_cache_dtype=draft.kv_dtype.value,
        kv_scales=draft.kv_scales,
        context_length=int(draft.context.value),
        chunk_tokens=int(draft.chunk.value),
        overlap=draft.overlap.value == "on",
        decisions=(*sizes, ranks, *draft.task_decisions),
        pooling=draft.pooling,
        ops_rejected=tuple(draft.ops_rejected),
        hooks_rejected=tuple(draft.hooks_rejected),
        tensor_parallel_size=num_ranks,
        max_running=draft.settings.scheduler.max_running_requests,
    )
    records = [choice.record for choice in resolution.choices() if choice.record is not None]
    ignored = list(draft.sections.check(records))
    if draft.settings.cache.kv_scales_file is not None and not draft.kv_scales:
        ignored.append(
            f"cache.kv_scales_file has no effect: a KV cache of {draft.kv_dtype.value} has no scales; "
            "choose one with --kv-cache-dtype fp8"
        )
    resolution = resolution.with_plugin_data(draft.sections.exact(records), draft.catalog, ignored)
    check_device_of_all(resolution)
    check_quant(resolution)
    check_ranks(resolution, deterministic=draft.settings.engine.deterministic)
    if draft.settings.engine.deterministic:
        check_deterministic(resolution)
    check_device(resolution, draft.device)
    check_requested(draft.settings, resolution, explicit_cache=_explicit_cache(draft))
    return resolution


def _explicit_cache(draft: _Draft) -> bool:
    """Whether the operator asked for the prefix cache. Settings that crossed a process boundary no longer know which
    fields were given. A child needs no such knowledge: the parent has made the check, and the lock set tells whether
    the child chose the same."""
    return draft.parent and "prefix_cache" in draft.settings.cache.model_fields_set


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


def _chunk_tokens(asked: SchedulerSettings, hardware: ChosenHardware) -> Decision:
    if asked.chunked_prefill_size is not None:
        return Decision("step token budget", str(asked.chunked_prefill_size), "asked for")
    wish, reason = hardware.capabilities.chunk_tokens, f"preferred by {hardware.name}"
    if asked.performance_mode == "throughput":
        return Decision("step token budget", str(2 * wish), f"twice what is {reason}: throughput")
    if asked.performance_mode == "interactivity":
        return Decision("step token budget", str(max(1, wish // 2)), f"half of what is {reason}: interactivity")
    return Decision("step token budget", str(wish), reason)
