"""The table of commands: name, where it is, one line of help. The only place to touch to add one.

`target` is "module:attribute" of a click.Command; the module is imported when the command is used, so that
`core --help` and completion stay light. A command that takes settings is made by `core.cli.options.settings_command`;
a command with sub-commands is a `LazyGroup` with a table of its own (see core.cli.plugins).
A distribution adds commands through the entry-point group `core.commands` instead (see core.cli.group).
"""

from __future__ import annotations

from typing import NamedTuple


class CommandSpec(NamedTuple):
    """One command."""

    name: str
    target: str
    summary: str


COMMANDS: tuple[CommandSpec, ...] = (
    CommandSpec("serve", "core.cli.serve:command", "Start the HTTP server."),
    CommandSpec("generate", "core.cli.generate:command", "Answer prompts in this process."),
    CommandSpec("chat", "core.cli.chat:command", "Talk in the terminal."),
    CommandSpec("bench", "core.cli.bench:command", "Measure latency and throughput."),
    CommandSpec("plugins", "core.cli.plugins:command", "What is installed, what would be chosen, and why."),
    CommandSpec("config", "core.cli.config:command", "The settings in effect and who decided each."),
    CommandSpec("completion", "core.cli.completion:command", "Print the completion script of a shell."),
    CommandSpec("version", "core.cli.version:command", "Versions of core and of what it runs on."),
)
