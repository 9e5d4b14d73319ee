"""`core plugins list`.

With `--json`, one object:

- "core": version of core.
- "kinds": of {"name", "group" (entry-point group), "api" ([oldest, newest] interface version that this core speaks),
  "stage" ("live" or "draft"), "summary", "interface" ("module:Class"), "capabilities" (key of the manifest's table ->
  allowed form, as text)}.
- "plugins": of {"kind", "name", "full_name" (`distribution:name`), "distribution", "version", "target", "api", "stage",
  "state" ("available", "unavailable", "failed"), "reason", "warnings", "summary", "stability", "capabilities",
  "requires" {"packages", "hardware"}, "config" (target of the settings' model or null), "clashes_with"
  (distributions)}.
"""

from __future__ import annotations

import click

from core.cli.output import json_option, print_json, print_table
from core.interfaces.errors import PluginError
from core.interfaces.kinds import KINDS
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.registry.report import capabilities_text, installed


def _list(kind: str | None, check: bool, as_json: bool) -> int:
    catalog = Catalog.scan()
    if check:
        for record in catalog.records:
            if record.state == "available" and kind in (None, record.kind):
                try:
                    catalog.load(record.kind, record.full_name)
                except PluginError:
                    continue  # the catalog keeps the reason, shown below
    records = [record for record in catalog.records if kind in (None, record.kind)]
    if as_json:
        print_json(installed(catalog, kind))
    else:
        _print(records, catalog)
    return 1 if check and any(record.state != "available" for record in records) else 0


def _print(records: list[PluginRecord], catalog: Catalog) -> None:
    print_table(
        ("KIND", "NAME", "DISTRIBUTION", "VERSION", "API", "STAGE", "STATE", "SUMMARY", "CAPABILITIES"),
        [
            (
                r.kind,
                r.name,
                r.distribution,
                r.version,
                f"{r.api[0]}-{r.api[1]}",
                catalog.kinds[r.kind].stage if r.kind in catalog.kinds else "unknown",
                r.state,
                r.summary,
                capabilities_text(r),
            )
            for r in records
        ],
    )
    for record in records:
        if record.reason:
            click.echo(f"\n{record.title}: {record.state}\n  {record.reason}")
        for warning in record.warnings:
            click.echo(f"\n{record.title}: warning\n  {warning}")
        if catalog.clashes(record):
            others = ", ".join(other.distribution for other in catalog.clashes(record))
            click.echo(f"\n{record.title}: the name is also claimed by {others}\n  use it as {record.full_name}")


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
