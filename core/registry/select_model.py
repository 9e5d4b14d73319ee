"""Choose the architecture's class: one for any device, or on its device the one that is made for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.interfaces.errors import ConfigError, PluginClash, PluginNotFound, UnknownArchitecture
from core.registry.candidates import Rejected, wrong_hardware
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord, canonical
from core.registry.resolution import Choice

KIND = "models"


def choose_model(
    config: Mapping[str, Any], folder: Path, catalog: Catalog, hardware: str, asked: str | None = None
) -> Choice:
    """The first of config.json's architectures that is installed and for this device.

    A plugin that says it is for `hardware` goes before one that is for any device. It is then the selected one: if it
    cannot be used the start stops, and nothing else is taken in its place.
    asked: `--model-plugin`, "distribution:name" or a distribution. Raises UnknownArchitecture, ConfigError (installed,
    but for other devices), PluginClash and what loading raises.
    """
    names: list[str] = config["architectures"]
    if asked is not None:
        return _asked(asked, names, folder, catalog)
    elsewhere: list[tuple[PluginRecord, str]] = []
    for name in names:
        rejected: Rejected = []
        fit: list[PluginRecord] = []
        for record in (record for record in catalog.of_kind(KIND) if record.name == name):
            why = wrong_hardware(record, hardware)
            if record.state == "disabled":
                rejected.append((record.full_name, record.reason))
            elif why:
                rejected.append((record.full_name, why))
                elsewhere.append((record, why))
            else:
                fit.append(record)
        if fit:
            return _of_those_that_fit(fit, rejected, folder, catalog, hardware)
    if elsewhere:
        record, why = elsewhere[0]
        raise ConfigError(
            f"device is {hardware!r}, but {record.title} cannot be used there: {why}",
            field="engine.device",
            value=hardware,
            hint="choose another with --device, or install a plugin of that architecture for this one",
        )
    raise _unknown(names, config, folder, catalog)


def _of_those_that_fit(
    fit: list[PluginRecord], rejected: Rejected, folder: Path, catalog: Catalog, hardware: str
) -> Choice:
    specific = [record for record in fit if record.devices is not None]
    candidates = specific or fit
    if len(candidates) > 1:
        raise PluginClash(
            f"models plugin {candidates[0].name!r} is claimed by {len(candidates)} distributions"
            f"{f' for device {hardware}' if specific else ''}: "
            + " and ".join(f"{record.distribution} {record.version}" for record in candidates),
            hint=f"say which one: --model-plugin {' or '.join(record.full_name for record in candidates)}; "
            "or uninstall one of them",
        )
    (chosen,) = candidates
    reason = f"named in {folder.name}/config.json"
    if specific and len(fit) > 1:
        reason += f"; made for {hardware}, so it goes before what is for any device"
    for other in fit:
        if other is not chosen:
            rejected.append((other.full_name, f"for any device; {chosen.full_name} is made for {hardware}"))
    target = catalog.load(KIND, chosen.full_name)
    return Choice(KIND, chosen.name, chosen, target, reason, tuple(rejected))


def _asked(asked: str, names: list[str], folder: Path, catalog: Catalog) -> Choice:
    of_distribution = [
        record
        for record in catalog.of_kind(KIND)
        if record.name in names and canonical(record.distribution) == canonical(asked)
    ]
    record = catalog.record(KIND, of_distribution[0].full_name if of_distribution else asked)
    if record.name not in names:
        raise ConfigError(
            f"model_plugin is {asked!r}, which serves {record.name}, but {folder} is a checkpoint of "
            f"{' or '.join(names)}",
            field="model.model_plugin",
            value=asked,
            hint="leave --model-plugin out, or name a plugin of that architecture",
        )
    others = tuple(
        (other.full_name, "another was asked for")
        for other in catalog.of_kind(KIND)
        if other.name == record.name and other is not record
    )
    return Choice(KIND, record.name, record, catalog.load(KIND, record.full_name), "asked for", others)


def _unknown(
    names: list[str], config: Mapping[str, Any], folder: Path, catalog: Catalog
) -> UnknownArchitecture | PluginNotFound:
    off = [r for r in catalog.of_kind(KIND) if r.name in names and r.state == "disabled"]
    if off:
        return PluginNotFound(
            f"the only installed plugin for architecture {off[0].name!r} is turned off: {off[0].title}",
            hint="take it off --disable-plugins",
        )
    installed = sorted({record.name for record in catalog.of_kind(KIND)})
    likely = _likely_distributions(config.get("model_type"))
    plugin = f"; by custom it is named after the model type or its family: {', '.join(likely)}" if likely else ""
    return UnknownArchitecture(
        f"no installed plugin serves architecture {names[0]!r} of {folder}; "
        f"installed architectures: {', '.join(installed) or 'none'}",
        hint=f"pip install a plugin that provides the core.models entry {names[0]!r}{plugin}",
    )


def _likely_distributions(model_type: Any) -> list[str]:
    """Of model type abc4_x_y: plugin-abc4-x-y, plugin-abc4-x, plugin-abc4, plugin-abc. One package often serves a
    family, and what is not installed cannot be asked."""
    if not isinstance(model_type, str) or not model_type:
        return []
    words = model_type.replace("_", "-").lower().split("-")
    names = ["-".join(words[:count]) for count in range(len(words), 0, -1)]
    names.append(words[0].rstrip("0123456789."))
    return [f"plugin-{name}" for name in dict.fromkeys(names) if name]
