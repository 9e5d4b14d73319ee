"""Catalog: every installed plugin by kind and name; imports one only when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import inspect
from abc import ABCMeta
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.interfaces.deprecation import missing_methods, outdated_methods
from core.interfaces.errors import ConfigError, PluginClash, PluginError, PluginLoadError, PluginNotFound
from core.interfaces.kinds import KINDS, Kind
from core.registry.records import PluginRecord, canonical


class Catalog:
    """Installed plugins. Made by `scan` or, for tests and embedders, by `from_records`.

    Records change in two ways only: one whose import fails becomes "failed" and keeps the reason, and one whose class
    overrides methods that are on their way out gets a warning for each.
    """

    def __init__(self, records: Iterable[PluginRecord], *, kinds: Mapping[str, Kind] = KINDS) -> None:
        self._kinds = kinds
        # Same order on every machine: core's choices among equals must not depend on the file system.
        self._records = sorted(records, key=lambda r: (r.kind, r.name, r.distribution))
        self._loaded: dict[tuple[str, str], Any] = {}

    @classmethod
    def scan(
        cls,
        *,
        groups: Iterable[str] | None = None,
        paths: Sequence[str] | None = None,
        kinds: Mapping[str, Kind] = KINDS,
    ) -> Catalog:
        """Read entry points and manifests; imports no plugin.

        groups: entry-point groups to look at, None for all. paths: folders to search instead of sys.path.
        """
        from core.registry.scan import scan_records

        return cls(scan_records(kinds, groups=groups, paths=paths), kinds=kinds)

    @classmethod
    def from_records(cls, records: Iterable[PluginRecord], *, kinds: Mapping[str, Kind] = KINDS) -> Catalog:
        """A catalog of given records; `record.loaded` may carry the object itself."""
        return cls(records, kinds=kinds)

    def without(self, disabled: Sequence[str]) -> Catalog:
        """This catalog with some plugins in state "disabled": never loaded, an error if asked for.

        disabled: names, `distribution:name`s, `kind/name`s or whole distributions. Raises ConfigError for one that
        means nothing installed.
        """
        if not disabled:
            return self
        means = {text: [r for r in self._records if _is_meant(r, text)] for text in disabled}
        unknown = [text for text, found in means.items() if not found]
        if unknown:
            names = sorted({n for r in self._records for n in (r.name, r.full_name, r.distribution)})
            close = difflib.get_close_matches(unknown[0], names, n=1)
            raise ConfigError(
                f"disable_plugins has {unknown[0]!r}, but no installed plugin or distribution is called that",
                field="engine.disable_plugins",
                value=unknown[0],
                hint=f"did you mean {close[0]!r}?" if close else "`core plugins list` shows the names",
            )
        off = {id(record): text for text, found in means.items() for record in found}
        changed = [
            replace(r, state="disabled", reason=f"disable_plugins names {off[id(r)]!r}") if id(r) in off else r
            for r in self._records
        ]
        catalog = Catalog(changed, kinds=self._kinds)
        catalog._loaded = self._loaded
        return catalog

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The kinds it knows, by name."""
        return self._kinds

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """All records, ordered by kind, name and distribution."""
        return tuple(self._records)

    def of_kind(self, kind: str) -> tuple[PluginRecord, ...]:
        """Records of one kind, usable or not."""
        return tuple(record for record in self._records if record.kind == kind)

    def clashes(self, record: PluginRecord) -> tuple[PluginRecord, ...]:
        """Records of other distributions that claim the same kind and name, leaving out those that are turned off and,
        where a plugin for one device overrides a general one, those for other devices."""
        kind = self._kinds.get(record.kind)
        return tuple(
            other
            for other in self.of_kind(record.kind)
            if other.name == record.name
            and other.distribution != record.distribution
            and "disabled" not in (record.state, other.state)
            and (kind is None or not kind.overrides or record.overlaps(other))
        )

    def has(self, kind: str, name: str) -> bool:
        """Whether something of that kind and name is installed, usable or not."""
        return any(record.answers_to(name) for record in self.of_kind(kind))

    def lookup(self, kind: str, name: str) -> PluginRecord:
        """The record of `name` or `distribution:name`, usable or not. Raises PluginNotFound, PluginClash."""
        matches = [record for record in self.of_kind(kind) if record.answers_to(name)]
        if not matches:
            raise self._not_found(kind, name)
        if len(matches) > 1:
            matches = [record for record in matches if record.state != "disabled"] or matches[:1]
        if len(matches) > 1:
            names = " and ".join(f"{record.distribution} {record.version}" for record in matches)
            options = " or ".join(record.full_name for record in matches)
            raise PluginClash(
                f"{kind} plugin {name!r} is claimed by {len(matches)} distributions: {names}",
                hint=f"say which one: {options}; or uninstall one of them",
            )
        return matches[0]

    def record(self, kind: str, name: str) -> PluginRecord:
        """The record of a plugin that may be used.

        Raises PluginNotFound, PluginClash, PluginApiError (built for another interface version) and
        PluginLoadError (no valid manifest, unmet requirements, or an import that failed before).
        """
        record = self.lookup(kind, name)
        error = record.unusable()
        if error is not None:
            raise error
        return record

    def load(self, kind: str, name: str) -> Any:
        """Import the plugin and return its class or callable. Raises what `record` raises; PluginLoadError
        carries the distribution and the cause."""
        record = self.record(kind, name)
        if record.loaded is not None:
            return record.loaded
        key = (kind, record.full_name)
        if key not in self._loaded:
            try:
                target = self._import(record)
            except KeyboardInterrupt:
                raise
            except BaseException as exc:  # a plugin may raise anything, SystemExit included
                cause = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
                error = self._fail(record, f"importing {record.target} raised {cause}")
                raise error from exc
            problem = self._breaks_interface(record, target)
            if problem:
                raise self._fail(record, problem)
            self._loaded[key] = target
            self._note_outdated(record, target)
        return self._loaded[key]

    def _import(self, record: PluginRecord) -> Any:
        module_name, _, attribute = record.target.partition(":")
        target: Any = importlib.import_module(module_name.strip())
        for part in attribute.split("[", 1)[0].strip().split("."):
            target = getattr(target, part) if part else target
        return target

    def _breaks_interface(self, record: PluginRecord, target: Any) -> str:
        """Why `target` is no implementation of its kind's abstract class, or ""."""
        interface = self._interface(record.kind)
        where = self._kinds[record.kind].interface.replace(":", ".")
        if not _is_abstract_class(interface):  # a Protocol or a mere convenience: an object of some shape
            return "" if callable(target) else f"{record.target} is not callable"
        if not (isinstance(target, type) and issubclass(target, interface)):
            return f"{record.target} is no subclass of {where}"
        missing = sorted(getattr(target, "__abstractmethods__", ()))
        missing += [entry.by for entry in missing_methods(target, interface)]
        return f"{record.target} lacks {', '.join(missing)} of {where}" if missing else ""

    def _interface(self, kind: str) -> type:
        module_name, _, attribute = self._kinds[kind].interface.partition(":")
        found: type = getattr(importlib.import_module(module_name), attribute)
        return found

    def _note_outdated(self, record: PluginRecord, target: Any) -> None:
        interface = self._interface(record.kind)
        entries = outdated_methods(target, interface) if isinstance(target, type) else ()
        if not entries:
            return
        texts = tuple(
            f"it implements {entry.method}, which {entry.by} replaces since version {entry.since} of the {record.kind} "
            f"interface; version {entry.removed_in} will no longer call it"
            for entry in entries
        )
        self._records[self._records.index(record)] = replace(record, warnings=record.warnings + texts)

    def _fail(self, record: PluginRecord, reason: str) -> PluginError:
        failed = replace(record, state="failed", reason=reason)
        self._records[self._records.index(record)] = failed
        error = failed.unusable()
        assert isinstance(error, PluginLoadError)
        return error

    def _not_found(self, kind: str, name: str) -> PluginNotFound:
        if kind not in self._kinds:
            return PluginNotFound(f"there is no plugin kind {kind!r}", hint=f"kinds: {', '.join(sorted(self._kinds))}")
        names = sorted({record.name for record in self.of_kind(kind)})
        listed = f"installed: {', '.join(names)}" if names else f"no {kind} plugin is installed"
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? {listed}" if close else listed
        return PluginNotFound(f"no {kind} plugin {name!r} is installed", hint=hint)


def _is_abstract_class(interface: Any) -> bool:
    """Whether implementations must be subclasses."""
    is_protocol = getattr(interface, "_is_protocol", False)
    return inspect.isclass(interface) and isinstance(interface, ABCMeta) and not is_protocol


def _is_meant(record: PluginRecord, text: str) -> bool:
    kind, slash, name = text.rpartition("/")
    if slash:
        return kind == record.kind and record.answers_to(name)
    return record.answers_to(text) or canonical(text) == canonical(record.distribution)
