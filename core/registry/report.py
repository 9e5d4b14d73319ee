"""What is installed and chosen, as plain data: `core plugins ... --json` and /server_info show the same."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.interfaces.capabilities import capability_fields
from core.interfaces.kinds import KINDS, Kind
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.registry.resolution import Choice, ExplainRow


def installed(catalog: Catalog, kind: str | None = None) -> dict[str, Any]:
    """All plugins, or those of one kind, with core's version and the kinds that it knows."""
    return {
        "core": importlib.metadata.version("core"),
        "kinds": [kind_data(entry) for entry in catalog.kinds.values() if kind in (None, entry.name)],
        "plugins": [
            plugin_data(record, catalog.clashes(record), catalog.kinds)
            for record in catalog.records
            if kind in (None, record.kind)
        ],
    }


def kind_data(kind: Kind) -> dict[str, Any]:
    """One kind."""
    return {
        "name": kind.name,
        "group": kind.group,
        "api": [kind.oldest_api, kind.api],
        "stage": kind.stage,
        "summary": kind.summary,
        "interface": kind.interface,
        "capabilities": capability_fields(kind.capabilities),
    }


def plugin_data(
    record: PluginRecord, clashes: Iterable[PluginRecord] = (), kinds: Mapping[str, Kind] = KINDS
) -> dict[str, Any]:
    """One plugin. stage is "unknown" for a kind that this core does not know."""
    kind = kinds.get(record.kind)
    return {
        "kind": record.kind,
        "name": record.name,
        "full_name": record.full_name,
        "distribution": record.distribution,
        "version": record.version,
        "target": record.target,
        "api": list(record.api),
        "stage": kind.stage if kind is not None else "unknown",
        "state": record.state,
        "reason": record.reason,
        "warnings": list(record.warnings),
        "summary": record.summary,
        "stability": record.stability,
        "capabilities": dict(record.capabilities),
        "requires": {"packages": list(record.requires_packages), "hardware": list(record.requires_hardware)},
        "config": record.config,
        "clashes_with": [other.distribution for other in clashes],
    }


def choice_data(choice: Choice) -> dict[str, Any]:
    """One choice, with the plugin behind it; plugin is None where nothing is used."""
    record = choice.record
    return {
        "kind": choice.kind,
        "name": choice.name,
        "distribution": record.distribution if record is not None else None,
        "version": record.version if record is not None else None,
        "reason": choice.reason,
        "rejected": [{"name": name, "reason": why} for name, why in choice.rejected],
        "plugin": plugin_data(record) if record is not None else None,
    }


def row_data(row: ExplainRow) -> dict[str, Any]:
    """One line of `explain`."""
    return {
        "what": row.what,
        "kind": row.kind,
        "chosen": row.chosen,
        "plugin": row.plugin,
        "reason": row.reason,
        "rejected": [{"name": name, "reason": why} for name, why in row.rejected],
    }


def capabilities_text(record: PluginRecord) -> str:
    """ "priority=10 dtypes=float32,bfloat16", as the manifest states them."""
    return " ".join(f"{key}={_text(value)}" for key, value in record.capabilities.items())


def verdicts(record: PluginRecord, rows: Iterable[ExplainRow], failed_at: str, kinds: Mapping[str, Kind]) -> list[str]:
    """Whether the plugin would be chosen, and why or why not, each "chosen ..." or "not chosen ...".

    rows: of `Resolution.explain`, or what a Trace has of a resolution that failed in step `failed_at` ("" if none did).
    """
    rows = list(rows)
    chosen = [f"chosen ({row.what}): {row.reason}" for row in rows if _is(row, record)]
    if chosen:
        return chosen
    if record.state != "available":
        return [f"not chosen: {record.reason}"]
    rejected = dict.fromkeys(why for row in rows if row.kind == record.kind for why in _reasons(row, record))
    if rejected:
        return [f"not chosen: {why}" for why in rejected]
    return [f"not chosen: {_why_not_considered(record, rows, failed_at, kinds)}"]


def _why_not_considered(record: PluginRecord, rows: list[ExplainRow], failed_at: str, kinds: Mapping[str, Kind]) -> str:
    kind = kinds.get(record.kind)
    if kind is not None and kind.stage == "draft":
        return f"{record.kind} is a draft kind; no engine calls its plugins yet"
    if record.kind == "commands":
        return f"it is used when somebody runs `core {record.name}`"
    others = [row for row in rows if row.kind == record.kind]
    if others:
        return f"{others[0].chosen} was: {others[0].reason}"
    if failed_at:
        return f"nothing was decided, since the step {failed_at!r} failed"
    return "nothing asks for it"


def _is(row: ExplainRow, record: PluginRecord) -> bool:
    return row.kind == record.kind and row.plugin == record.full_name


def _reasons(row: ExplainRow, record: PluginRecord) -> Iterator[str]:
    for name, why in row.rejected:
        if name in (record.name, record.full_name):
            yield why


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
