"""What every selection shares: walk the plugins of a kind in order and keep why one was not taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from core.interfaces.errors import PluginError
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord

Rejected = list[tuple[str, str]]


def by_priority(catalog: Catalog, kind: str) -> list[PluginRecord]:
    """Plugins of a kind, highest manifest priority first; among equals the catalog's order."""
    return sorted(catalog.of_kind(kind), key=lambda record: -record.priority)


def why_not(catalog: Catalog, record: PluginRecord, hardware: str | None) -> str:
    """Why core may not choose this plugin on its own, or "". Imports nothing.

    hardware: name of the chosen device, None while it is not chosen.
    """
    if record.state != "available":
        return record.reason
    others = catalog.clashes(record)
    if others:
        return f"the name is also claimed by {', '.join(o.distribution for o in others)}; ask for {record.full_name}"
    if hardware is not None:
        return wrong_hardware(record, hardware)
    return ""


def wrong_hardware(record: PluginRecord, hardware: str) -> str:
    """Why the plugin does not run on `hardware` as far as its manifest tells, or ""."""
    if record.requires_hardware and hardware not in record.requires_hardware:
        return f"it needs {' or '.join(record.requires_hardware)}, the device is {hardware}"
    allowed = record.stated.hardware
    if allowed is not None and hardware not in allowed:
        return f"it runs on {', '.join(allowed)}, the device is {hardware}"
    return ""


def loadable(
    catalog: Catalog, records: Sequence[PluginRecord], hardware: str | None, rejected: Rejected
) -> Iterator[tuple[PluginRecord, Any]]:
    """(record, target) of each that can be used, in order; the others go to `rejected` with the reason."""
    for record in records:
        label = record.full_name if catalog.clashes(record) else record.name
        reason = why_not(catalog, record, hardware)
        if reason:
            rejected.append((label, reason))
            continue
        try:
            target = catalog.load(record.kind, record.full_name)
        except PluginError:
            rejected.append((label, catalog.lookup(record.kind, record.full_name).reason))
            continue
        yield record, target


def listing(rejected: Rejected) -> str:
    """ "a: why; b: why", or "none is installed"."""
    return "; ".join(f"{name}: {why}" for name, why in rejected) or "none is installed"
