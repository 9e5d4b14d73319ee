"""What is broken among the installed plugins, and how to mend it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from core.interfaces.errors import ConfigError, CoreError
from core.registry.catalog import Catalog
from core.registry.health.children import Key, Outcome, import_in_children
from core.registry.health.findings import Finding, ordered
from core.registry.records import PluginRecord, canonical, unmet_requirements
from core.registry.sections import PluginSections

if TYPE_CHECKING:
    from core.config.sections import Settings


def examine(settings: Settings, catalog: Catalog, *, timeout_s: float = 60.0) -> list[Finding]:
    """Every finding, errors first. Imports plugins in child processes only, `timeout_s` each."""
    try:
        catalog = catalog.without(settings.engine.disable_plugins)
    except ConfigError as exc:
        bad = [Finding("error", "settings", "", "disable_plugins", exc.message, exc.hint or "")]
        return ordered([*bad, *examine(_enabled(settings), catalog, timeout_s=timeout_s)])
    findings = [finding for record in catalog.records for finding in _of_record(record, catalog)]
    findings += _of_distributions(catalog)
    available = [record for record in catalog.records if record.state == "available"]
    outcomes = import_in_children([(r.kind, r.full_name) for r in available], timeout_s=timeout_s)
    for record in available:
        findings += _of_import(record, outcomes[record.kind, record.full_name])
    findings += _of_devices(catalog, outcomes)
    findings += _of_settings(settings, catalog)
    return ordered(findings)


def _enabled(settings: Settings) -> Settings:
    return settings.model_copy(update={"engine": settings.engine.model_copy(update={"disable_plugins": ()})})


def _of_record(record: PluginRecord, catalog: Catalog) -> Iterator[Finding]:
    """What metadata and manifest tell."""
    label = _label(record)
    kind = catalog.kinds.get(record.kind)
    if record.state == "disabled":
        yield Finding("info", "disabled", label, "turned off", record.reason)
        return
    if record.api_mismatch:
        error = record.unusable()
        yield Finding(
            "error", "api", label, "wrong interface version", record.api_mismatch, (error and error.hint) or ""
        )
    elif record.state == "unavailable":
        unmet = unmet_requirements(record.requires_packages)
        if unmet and all(why in record.reason for _, why in unmet):
            for requirement, why in unmet:
                fix = _install(requirement) if requirement else f"report it to the authors of {record.distribution}"
                yield Finding("error", "requirement", label, "missing requirement", why, fix)
        else:
            fix = f"reinstall {record.distribution}; if that changes nothing, report it to its authors"
            yield Finding("error", "manifest", label, "its manifest cannot be used", record.reason, fix)
    elif kind is not None and kind.stage == "draft":
        why = f"{record.kind} is a draft kind: its plugins are checked, but no engine calls them yet"
        yield Finding("info", "draft", label, "not in use", why)
    for warning in record.warnings:
        yield Finding("warning", "manifest", label, "outdated or unknown statement", warning, _upgrade(record))
    others = catalog.clashes(record)
    if others:
        names = ", ".join(f"{other.distribution} {other.version}" for other in others)
        yield Finding(
            "error", "clash", label, "the name is claimed twice", f"{names} claims it too",
            f"use it as {record.full_name}, or turn one off with --disable-plugins, or uninstall it",
        )  # fmt: skip


def _of_distributions(catalog: Catalog) -> Iterator[Finding]:
    """What the packages' own metadata asks for, torch above all."""
    from packaging.requirements import Requirement

    for distribution in sorted({record.distribution for record in catalog.records if record.state != "disabled"}):
        try:
            requires: Sequence[str] = importlib.metadata.requires(distribution) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement, why in unmet_requirements(requires):
            is_torch = bool(requirement) and canonical(Requirement(requirement).name) == "torch"
            what = "wrong torch" if is_torch else "unmet dependency"
            fix = _install(requirement)
            if is_torch:
                fix += f", or another version of {distribution} that fits the installed torch"
            yield Finding("error", "torch" if is_torch else "requirement", distribution, what, why, fix)


def _of_import(record: PluginRecord, outcome: Outcome) -> Iterator[Finding]:
    label = _label(record)
    if outcome.loader:
        torch = _version("torch")
        yield Finding(
            "error", "binary", label, "a compiled extension cannot be loaded",
            f"the loader says: {outcome.loader} (installed torch: {torch or 'none'})",
            f"pip install --force-reinstall --no-cache-dir --no-deps {record.distribution}=={record.version}, or "
            f"install the torch that it was built for",
        )  # fmt: skip
    elif outcome.ended:
        why = outcome.error + (f"; it wrote: {outcome.output}" if outcome.output else "")
        fix = f"turn it off with --disable-plugins {record.full_name}, and reinstall or upgrade {record.distribution}"
        yield Finding("error", "import", label, "import failed", why, fix)
    elif outcome.error:
        fix = f"pip install --force-reinstall {record.distribution}=={record.version}, or upgrade it"
        yield Finding("error", "import", label, "import failed", outcome.error, fix)
    if outcome.settings_error:
        fix = f"pip install --force-reinstall {record.distribution}=={record.version}, or upgrade it"
        yield Finding("error", "settings", label, "its settings cannot be read", outcome.settings_error, fix)
    for warning in outcome.warnings:
        if warning not in record.warnings:
            yield Finding("warning", "deprecated", label, "outdated method", warning, _upgrade(record))
    probe = outcome.probe
    if probe is not None and "error" in probe:
        fix = f"report it to the authors of {record.distribution}; a probe must not raise"
        yield Finding("error", "probe", label, "its probe raised", probe["error"], fix)
    elif probe is not None:
        what = "present" if probe["available"] else "not present"
        yield Finding("info", "probe", label, what, probe["description"] or probe["reason"] or "no reason given")


def _of_devices(catalog: Catalog, outcomes: Mapping[Key, Outcome]) -> Iterator[Finding]:
    probes = [outcome.probe for (kind, _), outcome in outcomes.items() if kind == "hardware" and outcome.probe]
    if not any(probe.get("available") for probe in probes):
        why = "no installed hardware plugin finds its device" if probes else "no hardware plugin can be used"
        yield Finding("error", "probe", "", "no device", why, "install or repair a hardware plugin; core brings `cpu`")


def _of_settings(settings: Settings, catalog: Catalog) -> Iterator[Finding]:
    """Sections that belong to nothing, and keys and values that a plugin would refuse if it were chosen."""
    for name, values in settings.plugins.items():
        try:
            sections = PluginSections(settings.model_copy(update={"plugins": {name: values}}), catalog)
            warnings = sections.check(record for record in sections.owners(name) if record.state == "available")
        except CoreError as exc:
            yield Finding("error", "settings", "", f"settings plugins.{name}", exc.message, exc.hint or "")
            continue
        for warning in warnings:
            fix = "check the name against the plugin's documentation, or leave it out"
            yield Finding("warning", "settings", "", f"settings plugins.{name}", warning, fix)


def _label(record: PluginRecord) -> str:
    return f"{record.kind} {record.full_name}"


def _install(requirement: str) -> str:
    return f"pip install '{requirement}'"


def _upgrade(record: PluginRecord) -> str:
    return f"pip install --upgrade {record.distribution}, or tell its authors"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
