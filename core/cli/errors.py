"""How errors look in a terminal: what is wrong, then the way out. On stderr, without a traceback."""

from __future__ import annotations

import difflib

import click

from core.interfaces.errors import CoreError


def show_core_error(exc: CoreError) -> None:
    """Message and hint."""
    click.echo(f"core: error: {exc.message}", err=True)
    if exc.hint:
        click.echo(f"  hint: {exc.hint}", err=True)


def show_usage_error(exc: click.ClickException) -> None:
    """Wrong usage; for an unknown option the nearest one, found among aliases too."""
    message, hint = exc.format_message(), ""
    ctx = getattr(exc, "ctx", None)
    if isinstance(exc, click.NoSuchOption):
        message = f"there is no option {exc.option_name}"
        if ctx is not None:
            message += f" for `{ctx.command_path}`"
            hint = nearest_option(exc.option_name, ctx.command)
    if not hint and ctx is not None:
        hint = f"`{ctx.command_path} --help` lists what there is"
    click.echo(f"core: error: {message}", err=True)
    if hint:
        click.echo(f"  hint: {hint}", err=True)


def nearest_option(given: str, command: click.Command) -> str:
    """ "did you mean --x?" over all spellings of all options of `command`, or ""."""
    main_of: dict[str, str] = {}
    for param in command.params:
        if isinstance(param, click.Option):
            longs = [opt for opt in param.opts if opt.startswith("--")]
            for opt in longs:
                main_of[opt] = longs[0]
            main_of.update({opt: opt for opt in param.secondary_opts})
    close = difflib.get_close_matches(given.replace("_", "-"), main_of, n=1)
    if not close:
        return ""
    same = main_of[close[0]]
    return f"did you mean {close[0]}{'' if same == close[0] else f' (same as {same})'}?"
