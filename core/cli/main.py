"""`core`: the entry point. Turns every expected error into one message and an exit code.

Exit codes: 0 done; 1 an unexpected failure or a negative answer of a command; 2 a mistake the user can mend
(CoreError, wrong usage); 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from core.cli.commands import COMMANDS
from core.cli.errors import show_core_error, show_usage_error
from core.cli.group import LazyGroup
from core.engine.spinning import spin_briefly
from core.interfaces.errors import CoreError

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130


def build() -> click.Group:
    """The command tree."""

    def show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            from importlib.metadata import version

            click.echo(f"core {version('core')}")
            ctx.exit()

    return LazyGroup(
        COMMANDS,
        plugins=True,
        name="core",
        help="LLM serving as a thin core with plugins.\n\nStart with `core serve`; each command has --help.",
        params=[
            click.Option(
                ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=show_version,
                help="Show core's version.",
            ),
            debug_option(),
        ],
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )  # fmt: skip


def debug_option() -> click.Option:
    """--debug, on every level."""

    def remember(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().meta["core.debug"] = True

    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Show tracebacks of errors (also CORE_DEBUG=1).",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. argv: without the program's name; None for sys.argv."""
    args = list(sys.argv[1:] if argv is None else argv)
    spin_briefly(os.environ)  # before a command loads torch
    # click drops its context when an error leaves it, so the wish for tracebacks is read from the words as well.
    debug = os.environ.get("CORE_DEBUG", "") not in ("", "0") or "--debug" in args
    try:
        result = build().main(args=args, prog_name="core", standalone_mode=False)
    except CoreError as exc:
        if debug:
            raise
        show_core_error(exc)
        return EXIT_MISTAKE
    except click.ClickException as exc:
        show_usage_error(exc)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) is gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


if __name__ == "__main__":
    sys.exit(main())
