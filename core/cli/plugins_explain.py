"""`core plugins explain`."""

from __future__ import annotations

import click

from core.cli.options import ResolvedSettings, settings_command
from core.cli.output import json_option, print_json
from core.registry.catalog import Catalog


def _explain(resolved: ResolvedSettings, as_json: bool) -> None:
    from core.registry.resolve import resolve

    resolution = resolve(resolved.settings, Catalog.scan())
    rows = resolution.explain()
    if as_json:
        print_json(
            {
                "effective": resolution.effective,
                "choices": [
                    {
                        "what": row.what,
                        "chosen": row.chosen,
                        "reason": row.reason,
                        "rejected": [{"name": name, "reason": why} for name, why in row.rejected],
                    }
                    for row in rows
                ],
            }
        )
        return
    for row in rows:
        click.echo(f"{row.what}: {row.chosen}\n    why: {row.reason}")
        for name, why in row.rejected:
            click.echo(f"    not {name}: {why}")


command = settings_command(
    "explain",
    _explain,
    help="Show what `core serve` with the same options would choose, why, and what it would reject and why.",
    params=[json_option()],
)
