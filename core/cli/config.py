"""`core config show`.

With `--json`: an object from each setting's dotted name to {"value", "source"}; settings of plugins have "type",
"default" and "plugin" (`distribution:name`, "" if nothing installed has such a setting) as well. Secrets are masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from core.cli.options import ResolvedSettings, settings_command
from core.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from core.registry.shown import ShownSetting

command = click.Group("config", help="The settings in effect and who decided each.")


def _show(resolved: ResolvedSettings, all_plugins: bool, as_json: bool) -> None:
    rows = resolved.rows()
    own: list[ShownSetting] = []
    problems: list[str] = []
    if all_plugins or resolved.settings.plugins:
        from core.registry.catalog import Catalog
        from core.registry.shown import plugin_settings

        own, problems = plugin_settings(resolved.settings, Catalog.scan(), all_plugins=all_plugins)
    for problem in problems:
        click.echo(f"core: warning: {problem}", err=True)
    if as_json:
        data = {name: {"value": value, "source": source} for name, value, source in rows}
        data |= {
            r.name: {"value": r.value, "source": r.source, "type": r.type, "default": r.default, "plugin": r.plugin}
            for r in own
        }
        print_json(data)
        return
    print_table(("SETTING", "VALUE", "DECIDED BY"), [(name, _text(value), source) for name, value, source in rows])
    if own:
        click.echo()
        print_table(
            ("PLUGIN SETTING", "VALUE", "TYPE", "DEFAULT", "DECIDED BY"),
            [(r.name, _text(r.value), r.type or "-", _text(r.default), r.source) for r in own],
        )


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


command.add_command(
    settings_command(
        "show",
        _show,
        help="Show every setting, its value and who decided it. `-` is decided from model and hardware, or off.\n\n"
        "Settings of plugins are shown for those that have some set, with --plugins for all installed ones; to do so "
        "the modules of their settings are imported, the plugins are not.",
        params=[
            click.Option(["all_plugins", "--plugins"], is_flag=True, help="Show every installed plugin's settings."),
            json_option(),
        ],
    )
)
