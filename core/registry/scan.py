"""Find installed plugins: entry points joined with manifests. Imports no plugin and nothing heavy.

Two sources must agree. The entry point gives kind, name and target; the manifest in the entry point's top-level
package gives everything else. `find_spec` of a top-level name only looks for files, it runs nothing, and it
works for wheels and for editable installs alike.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.interfaces.capabilities import ReadCapabilities, Stated, read_capabilities
from core.interfaces.kinds import Kind
from core.registry.manifest import MANIFEST_NAME, Manifest, ManifestEntry, ManifestError, read_manifest
from core.registry.records import PluginRecord, api_mismatch, canonical, missing_requirements, outdated_api


@dataclass(frozen=True, slots=True)
class _Source:
    """One distribution."""

    distribution: str
    version: str
    entry_points: tuple[importlib.metadata.EntryPoint, ...]


def scan_records(
    kinds: Mapping[str, Kind], *, groups: Iterable[str] | None = None, paths: Sequence[str] | None = None
) -> list[PluginRecord]:
    """All records, unsorted.

    groups: entry-point groups to look at; None for all that core knows.
    paths: folders to search instead of sys.path.
    """
    by_group = {kind.group: kind.name for kind in kinds.values()}
    if groups is not None:
        wanted = set(groups)
        by_group = {group: name for group, name in by_group.items() if group in wanted}
    records: list[PluginRecord] = []
    for source in _sources(by_group, paths):
        records.extend(_records_of(source, by_group, kinds, paths))
    return records


def _sources(by_group: Mapping[str, str], paths: Sequence[str] | None) -> Iterable[_Source]:
    found = importlib.metadata.distributions() if paths is None else importlib.metadata.distributions(path=list(paths))
    seen: set[str] = set()
    for distribution in found:
        text = distribution.read_text("entry_points.txt")
        # Most distributions have nothing for us; parsing their metadata would take most of the scan's time.
        if not text or not any(group in text for group in by_group):
            continue
        entry_points = tuple(ep for ep in distribution.entry_points if ep.group in by_group)
        # Not metadata["Name"]: from Python 3.12 on that warns where the key is missing.
        metadata: Any = distribution.metadata
        name = metadata.get("Name")
        # The first one on the path is the one that imports; a stale copy further down is not looked at.
        if not entry_points or not name or canonical(name) in seen:
            continue
        seen.add(canonical(name))
        yield _Source(name, metadata.get("Version") or "0", entry_points)


def _records_of(
    source: _Source, by_group: Mapping[str, str], kinds: Mapping[str, Kind], paths: Sequence[str] | None
) -> Iterable[PluginRecord]:
    """Records of one distribution, from entry points first, then manifest entries that have none."""
    packages: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for entry_point in source.entry_points:
        packages.setdefault(entry_point.value.split(":", 1)[0].split(".", 1)[0].strip(), []).append(entry_point)
    for package, entry_points in packages.items():
        manifest, problem = _manifest_of(package, paths)
        entries = {(entry.kind, entry.name): entry for entry in manifest.plugin} if manifest else {}
        for entry_point in entry_points:
            kind = by_group[entry_point.group]
            entry = entries.pop((kind, entry_point.name), None)
            if not problem and entry is None:
                missing = f"the distribution's {MANIFEST_NAME} has no entry for {kind} {entry_point.name!r}"
            else:
                missing = problem
            yield _record(source, kind, entry_point.name, entry_point.value, entry, kinds, missing)
        for (kind, name), entry in entries.items():
            if kind in by_group.values() or kind not in kinds:
                group = kinds[kind].group if kind in kinds else ""
                missing = (
                    f"the distribution has no entry point {group}:{name}; reinstall it if it is an editable install"
                    if group
                    else f"kind {kind!r} is unknown to this core"
                )
                yield _record(source, kind, name, "", entry, kinds, missing)


def _manifest_of(package: str, paths: Sequence[str] | None) -> tuple[Manifest | None, str]:
    """(manifest, "") or (None, why not)."""
    try:
        if paths is None:
            spec = importlib.util.find_spec(package)
        else:
            spec = importlib.machinery.PathFinder.find_spec(package, list(paths))
    except (ImportError, ValueError) as exc:
        return None, f"its package {package!r} cannot be located ({exc})"
    if spec is None:
        return None, f"its package {package!r} is not installed"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not folders:
        return None, f"{package!r} is a single module; a plugin must be a package that holds {MANIFEST_NAME}"
    path = next((f / MANIFEST_NAME for f in folders if (f / MANIFEST_NAME).is_file()), folders[0] / MANIFEST_NAME)
    try:
        return read_manifest(path), ""
    except ManifestError as exc:
        text = exc.message
        return None, f"{text} in package {package!r}" if text == f"{MANIFEST_NAME} is missing" else text


def _record(
    source: _Source,
    kind: str,
    name: str,
    target: str,
    entry: ManifestEntry | None,
    kinds: Mapping[str, Kind],
    problem: str,
) -> PluginRecord:
    mismatch, read = "", ReadCapabilities(Stated())
    if entry is not None and kind in kinds:
        mismatch = api_mismatch(entry.api, kinds[kind], importlib.metadata.version("core"))
        # A manifest for another interface version may state what this core cannot know.
        read = read if mismatch else read_capabilities(kinds[kind].capabilities, entry.capabilities)
    if entry is None:
        return PluginRecord(
            kind, name, source.distribution, source.version, target, state="unavailable", reason=problem
        )
    wrong = f"its manifest states {'; '.join(read.problems)}" if read.problems else ""
    unusable = problem or mismatch or wrong or missing_requirements(entry.requires.packages)
    outdated = outdated_api(entry.api, kinds[kind]) if kind in kinds else ""
    return PluginRecord(
        kind=kind,
        name=name,
        distribution=source.distribution,
        version=source.version,
        target=target,
        api=entry.api,
        capabilities=entry.capabilities,
        config=entry.config,
        summary=entry.summary,
        stability=entry.stability,
        requires_packages=entry.requires.packages,
        requires_hardware=entry.requires.hardware,
        state="unavailable" if unusable else "available",
        reason=unusable,
        api_mismatch=mismatch,
        warnings=((outdated,) if outdated else ()) + read.warnings,
        stated=read.stated,
    )
