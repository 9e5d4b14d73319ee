"""`core plugins doctor`.

With `--json`, one object: "core", "python", "torch" (version, null if it is not installed), "healthy" (no errors),
"checked" (number of plugins) and "findings", errors first: of {"severity" ("error", "warning", "info"), "check" ("api",
"requirement", "torch", "manifest", "clash", "import", "binary", "settings", "probe", "deprecated", "draft",
"disabled"), "plugin" ("kind distribution:name", a distribution, or ""), "what", "why", "fix"}.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from core.cli.options import ResolvedSettings, settings_command
from core.cli.output import json_option, print_json
from core.registry.catalog import Catalog


def _doctor(resolved: ResolvedSettings, timeout_s: float, as_json: bool) -> int:
    from core.registry.health.doctor import examine
    from core.registry.health.findings import findings_data, findings_text, healthy

    catalog = Catalog.scan()
    findings = examine(resolved.settings, catalog, timeout_s=timeout_s)
    well = healthy(findings)
    if as_json:
        print_json(
            {
                "core": version("core"),
                "python": platform.python_version(),
                "torch": _torch(),
                "healthy": well,
                "checked": len(catalog.records),
                "findings": findings_data(findings),
            }
        )
    else:
        for line in findings_text(findings):
            click.echo(line)
        errors = sum(finding.severity == "error" for finding in findings)
        click.echo(f"{len(catalog.records)} plugins checked: {f'{errors} problems' if errors else 'no problems'}")
    return 0 if well else 1


def _torch() -> str | None:
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


command = settings_command(
    "doctor",
    _doctor,
    help="Say what is broken among the installed plugins, why, and how to mend it. Exit code 0 if nothing is, 1 if "
    "something is.\n\nEach plugin is imported in a child process: one that crashes, hangs or exits is only reported.",
    params=[
        click.Option(["--timeout-s"], type=click.FloatRange(min=0.1), default=60.0, help="Seconds for each import."),
        json_option(),
    ],
)
