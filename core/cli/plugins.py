"""`core plugins`: a group whose commands are imported one by one, so that `list` needs no settings."""

from __future__ import annotations

from core.cli.commands import CommandSpec
from core.cli.group import LazyGroup

command = LazyGroup(
    (
        CommandSpec("list", "core.cli.plugins_list:command", "List installed plugins."),
        CommandSpec("explain", "core.cli.plugins_explain:command", "Show what would be chosen, and why."),
        CommandSpec("doctor", "core.cli.plugins_doctor:command", "Say what is broken, and how to mend it."),
        CommandSpec("validate", "core.cli.plugins_validate:command", "Check a package before release."),
        CommandSpec("new", "core.cli.plugins_new:command", "Write a package for a plugin of any kind."),
    ),
    name="plugins",
    help="What is installed, what would be chosen, and why.",
)
