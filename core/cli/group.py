"""A click group that knows its commands' names and help lines without importing them."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from core.cli.commands import CommandSpec
from core.interfaces.errors import PluginLoadError

if TYPE_CHECKING:
    from core.registry.catalog import Catalog
    from core.registry.records import PluginRecord

PLUGIN_GROUP = "core.commands"


class LazyGroup(click.Group):
    """Commands come from a table and, if `plugins`, from the `core.commands` entry points."""

    def __init__(self, specs: Sequence[CommandSpec], *, plugins: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._specs = {spec.name: spec for spec in specs}
        self._with_plugins = plugins
        self._catalog: Catalog | None = None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._specs, *self._plugin_summaries()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        spec = self._specs.get(cmd_name)
        if spec is not None:
            module_name, _, attribute = spec.target.partition(":")
            found: click.Command = getattr(importlib.import_module(module_name), attribute)
            return found
        catalog = self._plugin_catalog()
        if catalog is not None and catalog.has("commands", cmd_name):
            return _plugin_command(cmd_name, catalog)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            names = self.list_commands(ctx)
            close = difflib.get_close_matches(name, names, n=1)
            tail = f"did you mean {close[0]!r}?" if close else f"commands: {', '.join(names)}"
            raise click.UsageError(f"there is no command {name!r}; {tail}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(spec.name, spec.summary) for spec in self._specs.values()])
        extra = self._plugin_summaries()
        if extra:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(list(extra.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        summaries = {spec.name: spec.summary for spec in self._specs.values()} | self._plugin_summaries()
        items = [CompletionItem(n, help=text) for n, text in summaries.items() if n.startswith(incomplete)]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def _plugin_catalog(self) -> Catalog | None:
        """Catalog of command plugins; None, without loading the registry, if there are none."""
        if self._catalog is None and self._with_plugins:
            import importlib.metadata

            if importlib.metadata.entry_points(group=PLUGIN_GROUP):
                from core.registry.catalog import Catalog

                # A plugin's command takes no settings of core's, so only the environment can have turned it off.
                disabled = os.environ.get("CORE_DISABLE_PLUGINS", "")
                names = [name.strip() for name in disabled.split(",") if name.strip()]
                self._catalog = Catalog.scan(groups=None if names else [PLUGIN_GROUP]).without(names)
        return self._catalog

    def _plugin_summaries(self) -> dict[str, str]:
        """Name -> help line. A name that core has, or that two distributions claim, is shown in full."""
        catalog = self._plugin_catalog()
        found = {}
        for record in catalog.of_kind("commands") if catalog is not None else ():
            claimed = self._also_claimed_by(record, catalog)
            text = record.summary or f"from {record.distribution}"
            if record.state != "available":
                text = f"unavailable: {record.reason}"
            if claimed:
                text += f" ({record.name!r} is also claimed by {claimed})"
            found[record.full_name if claimed else record.name] = text
        return found

    def _also_claimed_by(self, record: PluginRecord, catalog: Catalog | None) -> str:
        """Who else has a command of that name: core, whose own always runs, or other distributions; "" if nobody."""
        if record.name in self._specs:
            return "core"
        return ", ".join(other.distribution for other in catalog.clashes(record)) if catalog is not None else ""


def _plugin_command(name: str, catalog: Catalog) -> click.Command:
    """A command that hands its arguments, --help included, to the plugin's application as they are.

    Used, it raises the PluginError of a plugin that is broken, or whose name two distributions claim.
    """

    def run(args: tuple[str, ...]) -> int:
        app = catalog.load("commands", name)
        record = catalog.record("commands", name)
        if not isinstance(app, click.Command) and not hasattr(app, "registered_commands"):
            raise PluginLoadError(
                f"{record.title} cannot be used: {record.target} is a {type(app).__name__}, not a typer.Typer",
                hint=f"repair or reinstall {record.distribution}",
            )
        try:
            app(args=list(args), prog_name=f"core {name}")
        except SystemExit as left:  # how such an application ends
            return left.code if isinstance(left.code, int) else int(left.code is not None)
        return 0

    return click.Command(
        name,
        callback=run,
        params=[click.Argument(["args"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True, "help_option_names": []},
        add_help_option=False,
    )
