"""PluginRecord: what is known of one plugin before anything of it is imported, and the checks on that."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from core.interfaces.capabilities import Stated, read_capabilities
from core.interfaces.errors import PluginApiError, PluginError, PluginLoadError
from core.interfaces.kinds import KINDS, Kind

State = Literal["available", "unavailable", "failed", "disabled"]
_UNREAD = Stated()


def canonical(distribution: str) -> str:
    """A distribution's name as package indexes compare it: lower case, runs of - _ . are one dash."""
    out = distribution.lower().replace("_", "-").replace(".", "-")
    while "--" in out:
        out = out.replace("--", "-")
    return out


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """One plugin as its metadata describes it.

    target: "module:attr" of the entry point ("" if it has none). api: (oldest, newest) interface version.
    config: "module:Model" of its settings, or None. requires_hardware: names it works with, empty for any.
    capabilities: the manifest's table as it stands; stated: the same, checked and typed by the kind's schema (filled
    in where it is not given).
    state: "available", "unavailable" (known before import), "failed" (import was tried) or "disabled" (the operator
    turned it off). reason: why.
    warnings: what does not stop it but should be known (outdated interface, unknown capabilities).
    api_mismatch: why its interface versions do not fit this core, or "".
    loaded: the object itself, where a catalog was built from objects.
    """

    kind: str
    name: str
    distribution: str
    version: str = "0"
    target: str = ""
    api: tuple[int, int] = (1, 1)
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    config: str | None = None
    summary: str = ""
    stability: str = "stable"
    requires_packages: tuple[str, ...] = ()
    requires_hardware: tuple[str, ...] = ()
    state: State = "available"
    reason: str = ""
    api_mismatch: str = ""
    loaded: Any = None
    warnings: tuple[str, ...] = ()
    stated: Stated = _UNREAD

    def __post_init__(self) -> None:
        if self.stated is not _UNREAD:
            return
        kind = KINDS.get(self.kind)
        read = read_capabilities(kind.capabilities if kind is not None else Stated, self.capabilities)
        object.__setattr__(self, "stated", read.stated)
        object.__setattr__(self, "warnings", self.warnings + (read.warnings if kind is not None else ()))
        if read.problems and self.state == "available":
            object.__setattr__(self, "state", "unavailable")
            object.__setattr__(self, "reason", f"its manifest states {'; '.join(read.problems)}")

    @property
    def full_name(self) -> str:
        """`distribution:name`, never ambiguous."""
        return f"{self.distribution}:{self.name}"

    @property
    def title(self) -> str:
        """For texts: "attention plugin 'x' (distribution y 1.0)"."""
        return f"{self.kind} plugin {self.name!r} (distribution {self.distribution} {self.version})"

    @property
    def priority(self) -> int:
        """Order among plugins that core may choose from, higher first; from the manifest, 0 if not stated."""
        return self.stated.priority

    @property
    def devices(self) -> frozenset[str] | None:
        """Hardware plugins it says it runs on, None for any."""
        limits = [frozenset(names) for names in (self.requires_hardware, self.stated.hardware) if names]
        return frozenset.intersection(*limits) if limits else None

    def overlaps(self, other: PluginRecord) -> bool:
        """Whether the two are for the same devices: both for any, or both for one that they share."""
        if self.devices is None or other.devices is None:
            return self.devices is other.devices
        return bool(self.devices & other.devices)

    def answers_to(self, name: str) -> bool:
        """Whether `name` or `distribution:name` means this plugin."""
        if name == self.name:
            return True
        distribution, colon, short = name.rpartition(":")
        return bool(colon) and short == self.name and canonical(distribution) == canonical(self.distribution)

    def unusable(self) -> PluginError | None:
        """The error that using this plugin must raise, or None if it may be tried."""
        if self.api_mismatch:
            newer_core = "needs a newer core" in self.api_mismatch
            hint = (
                f"upgrade core, or install an older {self.distribution}"
                if newer_core
                else f"pip install --upgrade {self.distribution}, or install an older core"
            )
            return PluginApiError(f"{self.title} cannot be used: {self.api_mismatch}", hint=hint)
        if self.state == "disabled":
            return PluginLoadError(
                f"{self.title} is turned off: {self.reason}",
                hint=f"take it off the list, or choose another {self.kind} plugin",
            )
        if self.state != "available":
            return PluginLoadError(
                f"{self.title} cannot be used: {self.reason}",
                hint=f"repair or reinstall {self.distribution}, or choose another {self.kind} plugin",
            )
        return None


def api_mismatch(api: tuple[int, int], kind: Kind, core_version: str) -> str:
    """Why interface versions `api` do not meet what core speaks of `kind`, or ""."""
    speaks = f"core {core_version} speaks {_span(kind.oldest_api, kind.api)}"
    if api[1] < kind.oldest_api:
        return f"it is built for version {_span(*api)} of the {kind.name} interface, {speaks}; the plugin is too old"
    if api[0] > kind.api:
        return f"it is built for version {_span(*api)} of the {kind.name} interface, {speaks}; it needs a newer core"
    return ""


def outdated_api(api: tuple[int, int], kind: Kind) -> str:
    """A warning for a plugin that speaks only the older of the two versions that core speaks, or ""."""
    if kind.oldest_api <= api[1] < kind.api:
        return (
            f"it is built for version {_span(*api)} of the {kind.name} interface; core speaks {kind.api} and will "
            f"drop {api[1]} with the next version"
        )
    return ""


def missing_requirements(requirements: Sequence[str]) -> str:
    """Which of the PEP 508 `requirements` are not met by what is installed, as text; "" if all are."""
    return "; ".join(f"{why} (pip install '{text}')" if text else why for text, why in unmet_requirements(requirements))


def unmet_requirements(requirements: Sequence[str]) -> list[tuple[str, str]]:
    """(requirement, why it is not met) of each that is not; the requirement is "" if it is none at all."""
    if not requirements:
        return []
    from packaging.requirements import InvalidRequirement, Requirement

    problems = []
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as exc:
            problems.append(("", f"its manifest states {text!r}, which is no valid requirement ({exc})"))
            continue
        # An empty extra: what only an extra asks for is not asked for.
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        bare = f"{requirement.name}{requirement.specifier}"
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append((bare, f"it needs {bare}, which is not installed"))
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            problems.append((bare, f"it needs {bare}, but {installed} is installed"))
    return problems


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
