"""`core completion SHELL`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


def _print(shell: str) -> None:
    from core.cli.main import build

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"there is no completion for {shell!r}")
    click.echo(found(build(), {}, "core", "_CORE_COMPLETE").source())


command = click.Command(
    "completion",
    callback=_print,
    params=[click.Argument(["shell"], type=click.Choice(["bash", "zsh", "fish"]))],
    help='Print the completion script of a shell.\n\nFor bash: eval "$(core completion bash)"',
)
