"""`core plugins validate`.

With `--json`, one object: "core" (version), "path", "distribution", "version", "built" (whether a wheel was checked),
"plugins" (how many), "ok" (no errors) and "findings", errors first: of {"severity" ("error", "warning", "info"),
"check" ("build", "metadata", "readme", "dependencies", "entry-point", "manifest", "api", "requirement", "source",
"private", "pickle", "remote-code", "network", "heavy", "import", "settings", "probe", "deprecated", "tests", "draft"),
"plugin" ("kind distribution:name" or a distribution), "what" (file and line, or field), "why", "fix"}.
"""

from __future__ import annotations

from pathlib import Path

import click

from core.cli.main import debug_option
from core.cli.output import json_option, print_json


def _validate(path: str, timeout_s: float, as_json: bool) -> int:
    from core.registry.health.findings import findings_data, findings_text, healthy
    from core.registry.health.validate import core_version, validate_package

    report = validate_package(Path(path), timeout_s=timeout_s)
    ok = healthy(report.findings)
    if as_json:
        print_json(
            {
                "core": core_version(),
                "path": path,
                "distribution": report.distribution,
                "version": report.version,
                "built": report.built,
                "plugins": report.plugins,
                "ok": ok,
                "findings": findings_data(report.findings),
            }
        )
    else:
        for line in findings_text(report.findings):
            click.echo(line)
        errors = sum(finding.severity == "error" for finding in report.findings)
        result = "ready" if ok else f"{errors} problem{'s' if errors > 1 else ''}"
        click.echo(f"{report.distribution} {report.version}, {report.plugins} plugins: {result}")
    return 0 if ok else 1


command = click.Command(
    "validate",
    callback=_validate,
    params=[
        click.Argument(["path"]),
        click.Option(["--timeout-s"], type=click.FloatRange(min=0.1), default=60.0, help="Seconds for each import."),
        json_option(),
        debug_option(),
    ],
    help="Check a package before release: PATH is a folder with a pyproject.toml, or a wheel. Exit code 0 if it is "
    "ready, 1 if something must be mended.\n\nA folder is built into a wheel if its build backend is installed. "
    "Nothing is installed; the package is imported in child processes only.",
)
