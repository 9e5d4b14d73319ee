"""`core config show`."""

from __future__ import annotations

import click

from core.cli.options import ResolvedSettings, settings_command
from core.cli.output import json_option, print_json, print_table

command = click.Group("config", help="The settings in effect and who decided each.")


def _show(resolved: ResolvedSettings, as_json: bool) -> None:
    rows = resolved.rows()
    if as_json:
        print_json({name: {"value": value, "source": source} for name, value, source in rows})
        return
    shown = [(name, "-" if value is None else _text(value), source) for name, value, source in rows]
    print_table(("SETTING", "VALUE", "DECIDED BY"), shown)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


command.add_command(
    settings_command(
        "show",
        _show,
        help="Show every setting, its value and who decided it. `-` is decided from model and hardware, or off.",
        params=[json_option()],
    )
)
