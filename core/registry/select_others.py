"""Choose quantization, prefix cache, experts' runner, op tables and parsers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.interfaces.capabilities import StatedQuant
from core.interfaces.errors import CheckpointError, ConfigError, PluginError
from core.interfaces.spec import ModelSpec
from core.registry.candidates import Rejected, by_priority, listing, loadable, why_not, wrong_hardware
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.registry.resolution import Choice

NO_PLUGIN = "none"
AUTO = "auto"  # the same as not asking


def choose_quant(asked: str | None, quant_config: Mapping[str, Any] | None, hardware: str, catalog: Catalog) -> Choice:
    """The operator's method, else the one that recognises the checkpoint's quantization_config."""
    stated = quant_config.get("quant_method") if quant_config is not None else None
    label = "no quantization" if quant_config is None else f"quant_method {stated!r}"
    if asked is not None:
        record = catalog.record("quant", asked)
        target = catalog.load("quant", asked)
        _require_hardware(record, hardware, "model.quantization", asked)
        if quant_config is not None and not _recognises(target, quant_config, record):
            raise ConfigError(
                f"quantization is {asked!r}, but the checkpoint states {label}, which that plugin does not read",
                field="model.quantization",
                value=asked,
                hint="leave --quantization out, so that the checkpoint's own format is used",
            )
        return Choice("quant", record.name, record, target, "asked for")
    rejected: Rejected = []
    found: list[tuple[PluginRecord, Any]] = []
    for record in by_priority(catalog, "quant"):
        formats = record.stated.formats if isinstance(record.stated, StatedQuant) else None
        # A configuration that names no method may be anybody's: whoever reads formats is asked.
        named = quant_config is not None and (stated is not None or formats == ())
        if named and formats is not None and stated not in formats:
            rejected.append((record.name, f"reads {', '.join(formats) or 'no quantized format'}"))
            continue
        for _, target in loadable(catalog, [record], hardware, rejected):
            if _recognises(target, quant_config, record):
                found.append((record, target))
            else:
                rejected.append((record.name, f"does not read checkpoints with {label}"))
    if not found:
        raise _unread(quant_config, stated, rejected)
    record, target = found[0]
    rejected += [(other.name, f"also reads {label}; choose it with --quantization") for other, _ in found[1:]]
    return Choice("quant", record.name, record, target, f"the checkpoint states {label}", tuple(rejected))


def _recognises(target: Any, quant_config: Mapping[str, Any] | None, record: PluginRecord) -> bool:
    try:
        return bool(target.recognises(quant_config))
    except Exception as exc:
        raise CheckpointError(
            f"{record.title} could not read the checkpoint's quantization_config: {type(exc).__name__}: {exc}",
            hint="choose another method with --quantization",
        ) from exc


def _unread(quant_config: Mapping[str, Any] | None, stated: Any, rejected: Rejected) -> CheckpointError | ConfigError:
    if quant_config is None:
        return ConfigError(
            f"no installed plugin serves unquantized weights ({listing(rejected)})",
            field="model.quantization",
            hint="reinstall core, whose own `none` does",
        )
    what = (
        f"quant_method {stated!r}" if stated else f"a quantization_config without quant_method: {dict(quant_config)!r}"
    )
    return CheckpointError(
        f"the checkpoint is quantized with {what}, which no installed plugin reads ({listing(rejected)})",
        hint=f"pip install a core.quant plugin that reads {stated or 'this'!r}, or take an unquantized checkpoint",
    )


def choose_prefix_cache(asked: str, explicit: bool, spec: ModelSpec, catalog: Catalog) -> Choice:
    """The cache named by `asked`. One that cannot store the model's kinds of state is an error if the operator
    chose it, else `none` serves and the reason is kept."""
    record = catalog.record("prefix_cache", asked)
    target = catalog.load("prefix_cache", asked)
    storable = {str(kind) for kind in target.state_kinds}
    unstorable = sorted({str(group.kind) for group in spec.cache_groups} - storable)
    if not unstorable:
        return Choice("prefix_cache", record.name, record, target, "asked for" if explicit else "the default")
    why = f"it cannot store state of kind {', '.join(unstorable)}"
    if explicit or record.name == NO_PLUGIN:
        raise ConfigError(
            f"prefix_cache is {asked!r}, but {why}, which {spec.architecture} keeps",
            field="cache.prefix_cache",
            value=asked,
            hint="use --prefix-cache none, or a plugin that stores it",
        )
    fallback = catalog.record("prefix_cache", NO_PLUGIN)
    return Choice(
        "prefix_cache",
        fallback.name,
        fallback,
        catalog.load("prefix_cache", NO_PLUGIN),
        f"the default {asked!r} was not taken: {why}, which {spec.architecture} keeps",
        ((record.name, why),),
    )


def choose_schedule_policy(asked: str, hardware: str, catalog: Catalog) -> Choice:
    """The order of waiting requests. Raises PluginNotFound, which lists what is installed."""
    try:
        record = catalog.record("schedule_policies", asked)
        target = catalog.load("schedule_policies", asked)
    except PluginError as exc:
        exc.hint = f"{exc.hint + '; ' if exc.hint else ''}--schedule-policy chooses one"
        raise
    _require_hardware(record, hardware, "scheduler.schedule_policy", asked)
    return Choice("schedule_policies", record.name, record, target, "asked for, or the default")


def choose_moe(asked: str, hardware: str, catalog: Catalog) -> Choice:
    """The runner of experts. Chosen for dense models as well: a model is always built with one."""
    if asked != "auto":
        record = catalog.record("moe", asked)
        target = catalog.load("moe", asked)
        _require_hardware(record, hardware, "engine.moe_backend", asked)
        return Choice("moe", record.name, record, target, "asked for")
    rejected: Rejected = []
    chosen: tuple[PluginRecord, Any] | None = None
    for record in by_priority(catalog, "moe"):
        if chosen is None:
            chosen = next(loadable(catalog, [record], hardware, rejected), None)
        else:
            rejected.append((record.name, why_not(catalog, record, hardware) or "comes after the chosen one"))
    if chosen is None:
        raise ConfigError(
            f"moe_backend is 'auto', and no plugin can be used ({listing(rejected)})",
            field="engine.moe_backend",
            value=asked,
            hint="reinstall core, whose own plain runner works on any device",
        )
    record, target = chosen
    return Choice("moe", record.name, record, target, f"first by priority that runs on {hardware}", tuple(rejected))


def choose_ops(hardware: str, catalog: Catalog) -> tuple[tuple[Choice, ...], Rejected]:
    """Every op table for this device in merge order, and those left out. A later table wins, so the highest
    priority is last."""
    rejected: Rejected = []
    tables = list(loadable(catalog, by_priority(catalog, "ops"), hardware, rejected))
    reason = f"runs on {hardware}"
    return tuple(Choice("ops", r.name, r, target, reason) for r, target in reversed(tables)), rejected


def choose_parser(kind: str, field: str, asked: str | None, wished: str | None, catalog: Catalog) -> Choice:
    """A tool-call or reasoning parser: the operator's, else the model's wish if installed, else none."""
    if asked == NO_PLUGIN:
        return Choice(kind, NO_PLUGIN, None, None, "turned off")
    if asked is not None and (asked != AUTO or catalog.has(kind, AUTO)):
        try:
            return Choice(kind, asked, catalog.record(kind, asked), catalog.load(kind, asked), "asked for")
        except PluginError as exc:
            flag = field.rpartition(".")[2].replace("_", "-")
            exc.hint = f"{exc.hint + '; ' if exc.hint else ''}--{flag} none turns it off"
            raise
    if wished is None:
        return Choice(kind, NO_PLUGIN, None, None, "neither the operator nor the model names one")
    if not catalog.has(kind, wished):
        return Choice(
            kind, NO_PLUGIN, None, None,
            f"the model prefers {wished!r}, which is not installed", ((wished, "not installed"),),
        )  # fmt: skip
    rejected: Rejected = []
    records = [record for record in catalog.of_kind(kind) if record.answers_to(wished)]
    for record, target in loadable(catalog, records, None, rejected):
        return Choice(kind, record.name, record, target, "preferred by the model")
    reason = f"the model prefers {wished!r}, which cannot be used: {rejected[0][1]}"
    return Choice(kind, NO_PLUGIN, None, None, reason, tuple(rejected))


def _require_hardware(record: PluginRecord, hardware: str, field: str, value: str) -> None:
    why = wrong_hardware(record, hardware)
    if why:
        name = field.rpartition(".")[2]
        raise ConfigError(
            f"{name} is {value!r}, but {why}", field=field, value=value, hint="choose another, or --device"
        )
