"""`core plugins list`."""

from __future__ import annotations

from typing import Any

import click

from core.cli.output import json_option, print_json, print_table
from core.interfaces.errors import PluginError
from core.interfaces.kinds import KINDS
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord


def _list(kind: str | None, check: bool, as_json: bool) -> int:
    catalog = Catalog.scan()
    if check:
        for record in catalog.records:
            if record.state == "available":
                try:
                    catalog.load(record.kind, record.full_name)
                except PluginError:
                    continue  # the catalog keeps the reason, shown below
    records = [record for record in catalog.records if kind is None or record.kind == kind]
    if as_json:
        print_json([_as_dict(record, catalog) for record in records])
    else:
        print_table(
            ("KIND", "NAME", "DISTRIBUTION", "VERSION", "API", "STATE", "SUMMARY"),
            [
                (r.kind, r.name, r.distribution, r.version, f"{r.api[0]}-{r.api[1]}", r.state, r.summary)
                for r in records
            ],
        )
        for record in records:
            if record.reason:
                click.echo(f"\n{record.title}: {record.state}\n  {record.reason}")
            if catalog.clashes(record):
                others = ", ".join(other.distribution for other in catalog.clashes(record))
                click.echo(f"\n{record.title}: the name is also claimed by {others}\n  use it as {record.full_name}")
    return 1 if check and any(record.state != "available" for record in records) else 0


def _as_dict(record: PluginRecord, catalog: Catalog) -> dict[str, Any]:
    return {
        "kind": record.kind,
        "name": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "target": record.target,
        "api": list(record.api),
        "state": record.state,
        "reason": record.reason,
        "summary": record.summary,
        "stability": record.stability,
        "capabilities": dict(record.capabilities),
        "requires": {"packages": list(record.requires_packages), "hardware": list(record.requires_hardware)},
        "clashes_with": [other.distribution for other in catalog.clashes(record)],
    }


command = click.Command(
    "list",
    callback=_list,
    params=[
        click.Option(["--kind"], type=click.Choice(sorted(KINDS)), help="Only this kind."),
        click.Option(["--check"], is_flag=True, help="Import every plugin; exit code 1 if one cannot be used."),
        json_option(),
    ],
    help="List installed plugins. Imports none of them unless --check is given.",
)
