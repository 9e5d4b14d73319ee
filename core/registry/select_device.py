"""Choose the hardware backend and what follows from it: dtype and overlap."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.interfaces.errors import ConfigError, PluginLoadError
from core.interfaces.hardware import HardwareBackend, HardwareCapabilities, ProbeResult
from core.registry.candidates import Rejected, by_priority, listing, loadable
from core.registry.catalog import Catalog
from core.registry.resolution import Choice, Decision

KIND = "hardware"
_LOG = logging.getLogger("core.registry")


@dataclass(frozen=True, slots=True)
class ChosenHardware:
    """The choice and the class behind it."""

    choice: Choice
    backend: type[HardwareBackend]

    @property
    def name(self) -> str:
        return self.choice.name

    @property
    def capabilities(self) -> HardwareCapabilities:
        return self.backend.capabilities


def choose_hardware(device: str, catalog: Catalog) -> ChosenHardware:
    """`device`: "auto" or a plugin's name.

    auto: of all that are present the one with the highest probe priority. A named device that is absent or
    broken is an error; there is no fall-back to another.
    """
    if device != "auto":
        record = catalog.record(KIND, device)
        backend = catalog.load(KIND, device)
        probe = _probe(backend, record.title)
        if not probe.available:
            raise ConfigError(
                f"device is {device!r}, but this machine has none: {probe.reason or 'no reason given'}",
                field="engine.device",
                value=device,
                hint="choose another with --device, or leave it at auto",
            )
        reason = f"asked for; {probe.description or 'it is present'}"
        return ChosenHardware(Choice(KIND, record.name, record, backend, reason), backend)

    rejected: Rejected = []
    present = []
    for record, backend in loadable(catalog, by_priority(catalog, KIND), None, rejected):
        probe = _probe(backend, record.title)
        if probe.available:
            present.append((probe, record, backend))
        else:
            rejected.append((record.name, probe.reason or "not present"))
    for name, why in rejected:
        if catalog.has(KIND, name) and catalog.lookup(KIND, name).state == "failed":
            # Not selected, so the start goes on; but somebody installed it and should hear of it.
            _LOG.warning("hardware plugin %s is not used: %s", name, why)
    if not present:
        raise ConfigError(
            f"device is 'auto', and no hardware plugin can be used ({listing(rejected)})",
            field="engine.device",
            value="auto",
            hint="install or repair a hardware plugin; `core plugins list --kind hardware` shows them",
        )
    present.sort(key=lambda item: -item[0].priority)
    probe, record, backend = present[0]
    for other, other_record, _ in present[1:]:
        rejected.append((other_record.name, f"present, priority {other.priority} is below {probe.priority}"))
    reason = f"highest priority ({probe.priority}) of what is present"
    if probe.description:
        reason += f"; {probe.description}"
    return ChosenHardware(Choice(KIND, record.name, record, backend, reason, tuple(rejected)), backend)


def _probe(backend: type[HardwareBackend], title: str) -> ProbeResult:
    try:
        return backend.probe()
    except Exception as exc:  # the interface forbids it; a broken probe still must not stop other devices
        return ProbeResult(available=False, reason=f"its probe raised {type(exc).__name__}: {exc} ({title})")


def choose_dtype(asked: str, config: Mapping[str, Any], spec_dtype: str, hardware: ChosenHardware) -> Decision:
    """The compute type. Raises ConfigError if the operator's is not one of the device's."""
    usable = hardware.capabilities.dtypes
    if asked != "auto":
        if asked not in usable:
            raise ConfigError(
                f"dtype is {asked!r}, which device {hardware.name!r} cannot compute in",
                field="model.dtype",
                value=asked,
                hint=f"usable on {hardware.name}: {', '.join(usable)}",
            )
        return Decision("dtype", asked, "asked for")
    stated = config.get("dtype") or config.get("torch_dtype") or spec_dtype
    stated = str(stated).removeprefix("torch.")
    if stated in usable:
        return Decision("dtype", stated, "the checkpoint's")
    return Decision("dtype", usable[0], f"the checkpoint's {stated} is not usable on {hardware.name}; its first choice")


def choose_overlap(asked: str, hardware: ChosenHardware) -> Decision:
    """ "on" or "off". Raises ConfigError for "on" where the device runs every step on the host."""
    can = hardware.capabilities.async_steps
    if asked == "on" and not can:
        raise ConfigError(
            f"overlap is 'on', but device {hardware.name!r} cannot run a step while the host works on the next",
            field="engine.overlap",
            value=asked,
            hint="use --overlap auto or off",
        )
    if asked != "auto":
        return Decision("overlap", asked, "asked for")
    text = "runs steps while the host works" if can else "runs each step on the host's own processors"
    return Decision("overlap", "on" if can else "off", f"device {hardware.name} {text}")


def make_hardware(hardware: ChosenHardware, ctx: Any) -> HardwareBackend:
    """An instance, not initialised. Raises PluginLoadError."""
    try:
        return hardware.backend(ctx)
    except Exception as exc:
        record = hardware.choice.record
        title = record.title if record else hardware.name
        raise PluginLoadError(
            f"{title} could not be constructed: {type(exc).__name__}: {exc}",
            hint="check its settings (`core config show`), or choose another with --device",
        ) from exc
