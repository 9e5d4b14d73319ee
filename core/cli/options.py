"""Command-line options made from the settings' sections, and the command class that loads them.

A command declares which sections it takes; it gets one ResolvedSettings in which the flags are already merged with
environment and YAML. Values are checked in one place, by the sections, so flags, variables and files give the same
errors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from core.cli.main import debug_option
from core.config.fields import SettingField, section_names, setting_fields
from core.config.loading import ResolvedSettings, load_settings
from core.config.sections import Settings

_PREFIX = "setting_"
ALL_SECTIONS = section_names()


class SettingType(click.ParamType):
    """Text as typed; the sections check it. Gives completion and a metavar."""

    def __init__(self, entry: SettingField) -> None:
        self.entry = entry
        self.name = "|".join(entry.choices) if entry.choices else entry.type_name

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{self.name}]" if self.entry.choices else self.name.upper()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if self.entry.choices:
            return [CompletionItem(choice) for choice in self.entry.choices if choice.startswith(incomplete)]
        # Models, tokenizers and templates are given as paths.
        is_path = self.entry.name in ("model", "tokenizer", "chat_template")
        return [CompletionItem(incomplete, type="file")] if is_path else []


class SettingsCommand(click.Command):
    """A command whose callback is called with a ResolvedSettings and its own parameters by name."""

    def __init__(self, *args: Any, sections: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = tuple(sections)

    def invoke(self, ctx: click.Context) -> Any:
        own = dict(ctx.params)
        config = own.pop("config_file")
        plugin_flags = own.pop("set_values")
        flags = {}
        for name in list(own):
            if name.startswith(_PREFIX):
                value = own.pop(name)
                if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                    flags[name.removeprefix(_PREFIX)] = value
        resolved = load_settings(flags, os.environ, config, plugin_flags=plugin_flags)
        assert self.callback is not None
        return ctx.invoke(self.callback, resolved, **own)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own, grouped = [], {name: [] for name in self.sections}  # type: tuple[list[Any], dict[str, list[Any]]]
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            entry = getattr(param, "entry", None)
            (own if entry is None else grouped[entry.section]).append(record)
        if own:
            with formatter.section("Options"):
                formatter.write_dl(own)
        for section, records in grouped.items():
            with formatter.section(f"{section.capitalize()}: {_summary(section)}"):
                formatter.write_dl(records)


class SettingOption(click.Option):
    """The option of one setting."""

    def __init__(self, entry: SettingField) -> None:
        self.entry = entry
        names = ["--" + alias for alias in entry.aliases]
        shown = (
            "" if entry.default is None or "Default" in entry.description else f"  [default: {_show(entry.default)}]"
        )
        common: dict[str, Any] = {"help": entry.description + shown, "default": None}
        declarations = [_PREFIX + entry.name]
        if entry.type_name == "boolean":
            declarations += [f"{entry.flag}/--no-{entry.flag.removeprefix('--')}", *names]
        else:
            declarations += [entry.flag, *names]
            common["type"] = SettingType(entry)
            common["multiple"] = entry.type_name == "list"
        super().__init__(declarations, **common)


def settings_command(
    name: str,
    callback: Callable[..., Any],
    *,
    help: str,
    sections: Iterable[str] = ALL_SECTIONS,
    params: Sequence[click.Parameter] = (),
) -> SettingsCommand:
    """A command with an option for every field of `sections`, --config, --set and --debug.

    callback: called as callback(resolved, **own), `own` being the values of `params`; an int that it returns is
    the exit code.
    """
    chosen = tuple(sections)
    common: list[click.Parameter] = [
        click.Option(
            ["config_file", "--config"],
            type=click.Path(),
            help="YAML file with settings (also CORE_CONFIG). Flags win over CORE_* variables, those over the file.",
        ),
        click.Option(
            ["set_values", "--set"], multiple=True, metavar="NAME.KEY=VALUE", help="A plugin's own setting; repeatable."
        ),
        debug_option(),
    ]
    options = [SettingOption(entry) for entry in setting_fields() if entry.section in chosen]
    return SettingsCommand(name, callback=callback, params=[*params, *common, *options], help=help, sections=chosen)


def _summary(section: str) -> str:
    model = Settings.model_fields[section].annotation
    return ((model.__doc__ if model is not None else None) or "").strip().splitlines()[0].rstrip(".")


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return str(value)


__all__ = ["ALL_SECTIONS", "ResolvedSettings", "SettingsCommand", "settings_command"]
