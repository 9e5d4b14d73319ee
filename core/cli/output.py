"""Plain tables and JSON on stdout. No colours, no wrapping: the output is made to be piped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the last one is not padded."""
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def print_json(value: Any) -> None:
    """Indented; paths and other values that JSON lacks are written as text."""
    click.echo(json.dumps(value, indent=2, default=str))


def json_option() -> click.Option:
    """--json, as parameter `as_json`."""
    return click.Option(["as_json", "--json"], is_flag=True, help="Print JSON.")
