"""Check a package before it is released: a source folder or a wheel."""

from __future__ import annotations

import difflib
import importlib.metadata
import platform
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.interfaces.kinds import KINDS
from core.registry.catalog import Catalog
from core.registry.health.children import Outcome, import_in_children
from core.registry.health.findings import Finding, ordered
from core.registry.health.package import Package, open_package
from core.registry.health.source_rules import contract_classes, line_of_import, remarks_on
from core.registry.manifest import MANIFEST_NAME
from core.registry.records import PluginRecord, canonical, unmet_requirements

# Kind -> (module of core.testing.contracts, its class).
SUITES = {
    "models": ("model", "ModelContract"),
    "attention": ("attention", "AttentionContract"),
    "quant": ("quant", "QuantContract"),
    "prefix_cache": ("prefix_cache", "PrefixCacheContract"),
    "tool_parsers": ("tool_parser", "ToolParserContract"),
    "reasoning_parsers": ("reasoning_parser", "ReasoningParserContract"),
    "hardware": ("hardware", "HardwareContract"),
    "moe": ("moe", "MoeContract"),
    "ops": ("ops", "OpsContract"),
    "schedule_policies": ("schedule_policy", "SchedulePolicyContract"),
    "checkpoints": ("checkpoint", "CheckpointContract"),
    "commands": ("commands", "CommandsContract"),
    "routes": ("routes", "RoutesContract"),
    "hooks": ("hooks", "HooksContract"),
    "grammar": ("grammar", "GrammarContract"),
    "logit_processors": ("logit_processors", "LogitProcessorContract"),
    "speculative": ("speculative", "SpeculativeContract"),
    "kv_transport": ("kv_transport", "KvTransportContract"),
    "kv_store": ("kv_store", "KvStoreContract"),
    "pipelines": ("pipelines", "PipelineContract"),
}


@dataclass(frozen=True, slots=True)
class Report:
    """built: whether a wheel was checked. plugins: how many it has."""

    distribution: str
    version: str
    built: bool
    plugins: int
    findings: list[Finding]


def validate_package(path: Path, *, timeout_s: float = 60.0) -> Report:
    """Check the package at `path`, without installing it. Its code runs only in child processes, `timeout_s` for each
    plugin. Raises ConfigError if there is no package."""
    with open_package(path) as package:
        findings = [*package.findings, *_of_metadata(package), *_of_groups(package)]
        catalog = Catalog.scan(paths=package.paths)
        for module in package.modules:
            findings += _of_manifest(package, module)
        for record in catalog.records:
            findings += _of_record(package, record)
        findings += _of_sources(package)
        findings += _of_tests(package, catalog)
        findings += _of_imports(package, catalog, timeout_s)
        return Report(package.distribution, package.version, package.built, len(catalog.records), ordered(findings))


def _of_metadata(package: Package) -> Iterator[Finding]:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    def finding(severity: Any, field: str, why: str, fix: str) -> Finding:
        check = field if field in ("dependencies", "readme") else "metadata"
        return Finding(severity, check, package.distribution, f"pyproject.toml: project.{field}", why, fix)

    python = platform.python_version()
    if not package.requires_python:
        yield finding("warning", "requires-python", "it does not say which Python it needs", 'add ">=3.11", as core')
    else:
        try:
            if not SpecifierSet(package.requires_python).contains(python, prereleases=True):
                why = f"{package.requires_python!r} excludes this Python {python}"
                yield finding("error", "requires-python", why, "widen it, or validate with a Python that it allows")
        except InvalidSpecifier as exc:
            yield finding("error", "requires-python", str(exc), 'write it as ">=3.11"')
    names = set()
    for text in package.requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as exc:
            yield finding("error", "dependencies", f"{text!r}: {exc}", "write it as PEP 508 says, e.g. 'core>=0.1'")
            continue
        names.add(canonical(requirement.name))
        pinned = any(spec.operator in ("==", "===", "~=", "<", "<=") for spec in requirement.specifier)
        if canonical(requirement.name) == "torch" and pinned:
            why = f"{text!r} limits torch from above, and so every other plugin of an installation"
            yield finding("warning", "dependencies", why, "give only the oldest version that works; test the newest")
        if canonical(requirement.name) == "core":
            for _, why in unmet_requirements([text]):
                yield finding("error", "dependencies", why, "widen the range, or validate with a core of that version")
    if "core" not in names and not _is_core(package):
        yield finding("error", "dependencies", "it does not depend on core", 'add "core" to dependencies')
    has_file = package.source is not None and any(package.source.glob("README*"))
    if not package.has_readme:
        fix = 'set readme = "README.md"' if has_file else 'write README.md and set readme = "README.md"'
        yield finding("warning", "readme", "people who find the package see no description", fix)


def _of_groups(package: Package) -> Iterator[Finding]:
    groups = {kind.group: kind for kind in KINDS.values()}
    known = [group for group in package.entry_points if group in groups]
    for group in package.entry_points:
        if group not in groups:
            close = difflib.get_close_matches(group, groups, n=1)
            what = f'pyproject.toml: project.entry-points."{group}"'
            fix = f"did you mean {close[0]!r}?" if close else f"groups: {', '.join(groups)}"
            why = "this core knows no such kind of plugin"
            yield Finding("error", "entry-point", package.distribution, what, why, fix)
    if not known:
        yield Finding(
            "error", "entry-point", package.distribution, "pyproject.toml: project.entry-points",
            "it has no entry point of a group of core, so core will not find anything in it",
            'add e.g. [project.entry-points."core.attention"] with name = "package.module:Class"',
        )  # fmt: skip


def _of_manifest(package: Package, module: str) -> Iterator[Finding]:
    """What the file says of its plugins beyond what discovery checks."""
    folder = package.folder_of(module)
    file = folder / MANIFEST_NAME if folder is not None else None
    if file is None or not file.is_file():
        if package.built and package.source is not None and _in_sources(package.source, module):
            yield Finding(
                "error", "manifest", package.distribution, f"{module}/{MANIFEST_NAME} is not in the wheel",
                "the build leaves it out, since it is no Python file",
                f'hatchling includes it by itself; for setuptools add package-data "*" = ["{MANIFEST_NAME}"]',
            )  # fmt: skip
        return
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return  # discovery says so
    entries = raw.get("plugin", [])
    for index, entry in enumerate(entry for entry in entries if isinstance(entry, dict)):
        label = f"{entry.get('kind')} {package.distribution}:{entry.get('name')}"
        where = f"{package.shown(file)}: plugin {index + 1}"
        if not entry.get("summary"):
            fix = 'add summary = "one line for people"'
            yield Finding("warning", "manifest", label, f"{where}, summary", "lists of plugins show nothing", fix)
        if "stability" not in entry:
            fix = 'add stability = "stable", "beta" or "experimental"'
            yield Finding(
                "warning", "manifest", label, f"{where}, stability", "it counts as stable unless it says", fix
            )


def _in_sources(source: Path, module: str) -> bool:
    return any((root / module / MANIFEST_NAME).is_file() for root in (source / "src", source))


def _of_record(package: Package, record: PluginRecord) -> Iterator[Finding]:
    label = _label(record)
    kind = KINDS.get(record.kind)
    if record.api_mismatch:
        assert kind is not None
        fix = f"support version {kind.api} of the interface, and say so in api"
        yield Finding("error", "api", label, f"{MANIFEST_NAME}: api", record.api_mismatch, fix)
    elif record.state == "unavailable":
        unmet = unmet_requirements(record.requires_packages)
        if unmet and all(why in record.reason and text for text, why in unmet):
            for text, why in unmet:
                fix = f"pip install '{text}', and validate again"
                yield Finding("warning", "requirement", label, "not imported", f"{why} here", fix)
        else:
            fix = (
                f"entry points and {MANIFEST_NAME} must name the same plugins; see docs/plugins.md for the file's form"
            )
            yield Finding("error", "manifest", label, "manifest and entry points", record.reason, fix)
    if kind is not None and kind.stage == "draft":
        why = f"{record.kind} is a draft kind: no engine calls it yet, and its interface may change without a version"
        yield Finding("info", "draft", label, "not in use", why)
    for warning in record.warnings:
        check = "api" if "interface" in warning else "manifest"
        fix = "support the newest version too" if check == "api" else "correct the key, or give it the prefix x_"
        yield Finding("warning", check, label, MANIFEST_NAME, warning, fix)


def _of_sources(package: Package) -> Iterator[Finding]:
    for module in package.modules:
        folder = package.folder_of(module)
        for file in sorted(folder.rglob("*.py")) if folder is not None else ():
            for remark in remarks_on(file):
                if remark.check == "private" and _is_core(package):
                    continue
                what = f"{package.shown(file)}:{remark.line}: {remark.what}"
                severity: Any = remark.severity
                yield Finding(severity, remark.check, package.distribution, what, remark.why, remark.fix)


def _of_tests(package: Package, catalog: Catalog) -> Iterator[Finding]:
    if package.source is None:
        return
    files = [*(package.source / "tests").rglob("*.py"), *package.source.glob("test_*.py")]
    suites = set().union(*(contract_classes(file) for file in files)) if files else set()
    for kind in sorted({record.kind for record in catalog.records} & set(SUITES)):
        module, suite = SUITES[kind]
        names = [record.name for record in catalog.of_kind(kind)]
        if suite not in suites:
            yield Finding(
                "warning", "tests", f"{kind} {package.distribution}:{names[0]}", "tests/",
                f"no test runs the contract suite of {kind}",
                f"from core.testing.contracts.{module} import {suite}; class TestMine({suite}): name = {names[0]!r}",
            )  # fmt: skip


def _of_imports(package: Package, catalog: Catalog, timeout_s: float) -> Iterator[Finding]:
    available = [record for record in catalog.records if record.state == "available" and record.target]
    keys = [(record.kind, record.full_name) for record in available]
    modules = [module for module in package.modules if package.folder_of(module) is not None]
    outcomes = import_in_children(keys, packages=modules, paths=package.paths, timeout_s=timeout_s)
    for module in modules:
        outcome = outcomes["package", module]
        folder = package.folder_of(module)
        init = folder / "__init__.py" if folder is not None else None
        for heavy in outcome.heavy:
            line = line_of_import(init, heavy) if init is not None and init.is_file() and not outcome.error else 1
            yield Finding(
                "warning", "heavy", package.distribution, f"{module}/__init__.py:{line}: import of {heavy}",
                f"importing the package brings in {heavy}, which every process that touches it pays for",
                "import it in the modules that compute, and keep __init__.py empty",
            )  # fmt: skip
    for record in available:
        yield from _of_outcome(record, outcomes[record.kind, record.full_name])


def _of_outcome(record: PluginRecord, outcome: Outcome) -> Iterator[Finding]:
    label = _label(record)
    if outcome.error:
        why = outcome.loader or outcome.error
        if outcome.output:
            why += f"; it wrote: {outcome.output}"
        kind = KINDS[record.kind]
        what = f"entry point {kind.group}:{record.name} = {record.target}"
        yield Finding(
            "error", "import", label, what, why, f"it must be importable, and a {kind.interface.split(':')[1]}"
        )
    if outcome.settings_error:
        fix = "config must be the module:Class of a pydantic model"
        yield Finding("error", "settings", label, f"{MANIFEST_NAME}: config", outcome.settings_error, fix)
    for warning in outcome.warnings:
        if warning not in record.warnings:
            yield Finding("warning", "deprecated", label, record.target, warning, "implement the successor too")
    if outcome.probe is not None and "error" in outcome.probe:
        fix = "return ProbeResult(available=False, reason=...) instead"
        yield Finding("error", "probe", label, f"{record.target}.probe", outcome.probe["error"], fix)


def _is_core(package: Package) -> bool:
    return canonical(package.distribution) == "core"


def _label(record: PluginRecord) -> str:
    return f"{record.kind} {record.full_name}"


def core_version() -> str:
    """Of this core, against which the package was checked."""
    return importlib.metadata.version("core")
