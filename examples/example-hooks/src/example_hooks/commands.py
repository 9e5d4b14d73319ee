"""The command. Only this module is imported for it, so nothing heavy is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Read a log of requests.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Read a log of requests."""  # a callback keeps `summary` a sub-command, though it is the only one


@app.command()
def summary(file: Annotated[Path, typer.Argument(help="What --set request_log.path named.")]) -> None:
    """Count requests and tokens."""
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        reasons = Counter(row["finish_reason"] for row in rows)
        tokens = sum(row["num_output_tokens"] for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        typer.echo(f"{file} is no log of requests: {error}", err=True)
        raise typer.Exit(2) from None
    ended = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    typer.echo(f"{len(rows)} requests ({ended or 'none'}), {tokens} tokens")
