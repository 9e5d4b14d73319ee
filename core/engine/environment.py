"""Environment variables that a device wants in processes which compute on it, set before torch is imported there."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from core.interfaces.errors import ConfigError, CoreError, PluginError
from core.interfaces.hardware import HardwareBackend
from core.registry.context import plugin_context
from core.registry.select_device import choose_hardware, make_hardware

if TYPE_CHECKING:
    from core.config.sections import Settings
    from core.registry.catalog import Catalog

logger = logging.getLogger("core.engine")


def device_environment(settings: Settings, catalog: Catalog) -> dict[str, str]:
    """The variables of the device that `resolve` is going to choose. Needs no checkpoint and imports no torch of its
    own, so a child process can be told before it imports anything heavy. Where the device cannot be chosen or made,
    nothing: `resolve` tells why. Raises PluginError if the device's plugin breaks its interface, ConfigError if core
    dumps of the device are asked for and cannot be had."""
    try:
        catalog = catalog.without(settings.engine.disable_plugins)
        chosen = choose_hardware(settings.engine.device, catalog)
        assert chosen.choice.record is not None
        threads = settings.engine.cpu_threads if chosen.capabilities.threads else None
        plugins = with_threads(settings.plugins, chosen.name, threads)
        hardware = make_hardware(chosen, plugin_context(chosen.choice.record, plugins))
    except CoreError:
        return {}
    return {**variables_of(hardware), **core_dump_variables(hardware, settings.engine.device_core_dumps)}


def with_threads(
    plugins: Mapping[str, Mapping[str, Any]], device: str, threads: int | None
) -> Mapping[str, Mapping[str, Any]]:
    """The plugins' sections, with `threads` in the device's own unless it has it or `threads` is None."""
    if threads is None:
        return plugins
    return {**plugins, device: {"threads": threads, **plugins.get(device, {})}}


def variables_of(hardware: HardwareBackend) -> dict[str, str]:
    """What `hardware.environment()` returns. Raises PluginError if it is no mapping of text to text."""
    return _checked(hardware, "environment()", hardware.environment)


def core_dump_variables(hardware: HardwareBackend, folder: str | None) -> dict[str, str]:
    """With what the device writes core dumps into `folder`, which is made; nothing without a folder. Raises ConfigError
    if the folder cannot be made or the device writes no core dumps, PluginError as `variables_of` does."""
    if folder is None:
        return {}
    given: dict[str, Any] = {"field": "engine.device_core_dumps", "value": folder}
    whole = os.path.abspath(folder)
    variables = _checked(hardware, "core_dump_environment()", functools.partial(hardware.core_dump_environment, whole))
    if not variables:
        raise ConfigError(
            f"the device {hardware.name!r} writes no core dumps", **given, hint="leave out --device-core-dumps"
        )
    try:
        os.makedirs(whole, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {whole}: {error.strerror or error}", **given, hint="choose another") from error
    if not os.access(whole, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write into {whole}", **given, hint="choose another folder")
    return variables


def _checked(hardware: HardwareBackend, what: str, ask: Callable[[], Mapping[str, str]]) -> dict[str, str]:
    name = type(hardware).__qualname__
    try:
        variables = dict(ask())
    except Exception as error:
        raise PluginError(f"device {name}: {what} raised {type(error).__name__}: {error}") from error
    for key, value in variables.items():
        if not isinstance(key, str) or not isinstance(value, str) or not key or "=" in key:
            raise PluginError(
                f"device {name}: {what} has {key!r}: {value!r}; names and values must be text",
                hint=f"repair {type(hardware).__module__}, for example with str(...)",
            )
    return variables


def apply_environment(variables: Mapping[str, str], device: str = "") -> list[str]:
    """Set them in this process; those that the operator has set stay as they are. Returns, and warns of, those that may
    come too late because torch is imported already."""
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(missing)
    if not missing or "torch" not in sys.modules:
        return []
    late = sorted(missing)
    logger.warning(
        "torch was imported before the device%s could set %s: libraries that read them while they are loaded have not "
        "seen them. Set them before Python starts, or make the engine before importing torch.",
        f" {device!r}" if device else "",
        ", ".join(f"{name}={missing[name]}" for name in late),
    )
    return late
