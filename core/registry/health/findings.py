"""A finding: one thing that is wrong or worth knowing, with the way out. Of `core plugins doctor` and `validate`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
_ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """severity: "error" is a problem, "warning" will be one or may be one, "info" is worth knowing.
    check: a stable word for programs. plugin: "kind distribution:name", a distribution, or "" for the environment.
    what: the subject in a few words; of `validate` also the file and line or field. why: the reason.
    fix: the way out, "" for an info that needs none."""

    severity: Severity
    check: str
    plugin: str
    what: str
    why: str
    fix: str = ""


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Each once, errors first."""
    return sorted(dict.fromkeys(findings), key=lambda f: (_ORDER[f.severity], f.plugin, f.check))


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether none is an error."""
    return all(finding.severity != "error" for finding in findings)


def findings_data(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(finding) for finding in findings]


def findings_text(findings: Iterable[Finding]) -> list[str]:
    """For a terminal."""
    lines = []
    for finding in findings:
        subject = f"{finding.plugin}: {finding.what}" if finding.plugin else finding.what
        lines.append(f"{finding.severity}: {subject}")
        lines.append(f"    {finding.why}")
        if finding.fix:
            lines.append(f"    way out: {finding.fix}")
    return lines
