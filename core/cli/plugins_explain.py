"""`core plugins explain`.

With `--json`, one object:

- "ok": whether a start with these options would get as far as building the engine.
- "effective": name -> text of what would be in effect, null if not ok.
- "choices": of {"what", "kind" ("" for values that are no plugin), "chosen", "plugin" (`distribution:name` or ""),
  "reason", "rejected": of {"name", "reason"}}; if not ok, what was decided until then.
- "warnings": texts.
- "error": null, or {"step", "type", "message", "hint"}.
- "plugins": with NAME, the plugins of that name as `core plugins list --json` shows them, each with "verdict": texts
  that begin with "chosen" or "not chosen"; else null.
"""

from __future__ import annotations

import difflib
from typing import Any

import click

from core.cli.errors import show_core_error
from core.cli.options import ResolvedSettings, settings_command
from core.cli.output import json_option, print_json
from core.interfaces.errors import CoreError, PluginNotFound
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.registry.report import capabilities_text, plugin_data, row_data, verdicts
from core.registry.resolution import ExplainRow


def _explain(resolved: ResolvedSettings, name: str | None, as_json: bool) -> int:
    from core.registry.resolve import Trace, resolve

    trace, resolution, error = Trace(), None, None
    try:
        resolution = resolve(resolved.settings, Catalog.scan(), trace=trace)
    except CoreError as exc:
        error = exc
    rows = resolution.explain() if resolution is not None else trace.rows
    catalog = trace.catalog if trace.catalog is not None else Catalog.scan()
    failed_at = trace.step if error is not None else ""
    named = _named(name, catalog) if name is not None else []
    verdict = {r.full_name + r.kind: verdicts(r, rows, failed_at, catalog.kinds) for r in named}
    if as_json:
        print_json(
            {
                "ok": error is None,
                "effective": resolution.effective if resolution is not None else None,
                "choices": [row_data(row) for row in rows],
                "warnings": list(resolution.warnings) if resolution is not None else [],
                "error": _error(error, trace.step) if error is not None else None,
                "plugins": [
                    plugin_data(r, catalog.clashes(r), catalog.kinds) | {"verdict": verdict[r.full_name + r.kind]}
                    for r in named
                ]
                if name is not None
                else None,
            }
        )
        return 2 if error is not None else 0
    if name is not None:
        for record in named:
            _print_plugin(record, catalog, verdict[record.full_name + record.kind])
    else:
        _print_rows(rows)
        for warning in resolution.warnings if resolution is not None else ():
            click.echo(f"warning: {warning}")
    if error is not None:
        if name is None and rows:
            click.echo(f"stopped at: {trace.step}")
        show_core_error(error)
        return 2
    return 0


def _named(name: str, catalog: Catalog) -> list[PluginRecord]:
    kind, slash, rest = name.rpartition("/")
    found = [r for r in catalog.records if r.answers_to(rest if slash else name) and kind in ("", r.kind)]
    found = found or [r for r in catalog.records if r.distribution == name]
    if found:
        return found
    names = sorted({record.name for record in catalog.records})
    close = difflib.get_close_matches(rest, names, n=1)
    raise PluginNotFound(
        f"no installed plugin is called {name!r}",
        hint=f"did you mean {close[0]!r}?" if close else "`core plugins list` shows the names",
    )


def _print_rows(rows: list[ExplainRow]) -> None:
    for row in rows:
        click.echo(f"{row.what}: {row.chosen}\n    why: {row.reason}")
        for name, why in row.rejected:
            click.echo(f"    not {name}: {why}")


def _print_plugin(record: PluginRecord, catalog: Catalog, verdict: list[str]) -> None:
    click.echo(f"{record.title}")
    kind = catalog.kinds.get(record.kind)
    lines = [
        ("what", record.summary or "-"),
        ("interface", f"{record.api[0]} to {record.api[1]}" + (f" of {kind.interface}" if kind is not None else "")),
        ("state", record.state + (f": {record.reason}" if record.reason else "")),
        ("stability", record.stability),
        ("states", capabilities_text(record) or "nothing"),
        ("needs", ", ".join((*record.requires_packages, *record.requires_hardware)) or "nothing"),
    ]
    lines += [("warning", text) for text in record.warnings]
    lines += [("clashes with", other.title) for other in catalog.clashes(record)]
    lines += [("here", text) for text in verdict]
    for label, text in lines:
        click.echo(f"    {label}: {text}")


def _error(error: CoreError, step: str) -> dict[str, Any]:
    return {"step": step, "type": type(error).__name__, "message": error.message, "hint": error.hint}


command = settings_command(
    "explain",
    _explain,
    help="Show what `core serve` with the same options would choose, why, and what it would reject and why; as far as "
    "it came, if that fails.\n\nWith NAME (a plugin's name, `distribution:name`, `kind/name`, or a distribution): what "
    "that plugin is, and whether it would be chosen here.",
    params=[click.Argument(["name"], required=False), json_option()],
)
