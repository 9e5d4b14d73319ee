"""Calling chosen plugins' own code while an engine is built: errors that name the plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core.interfaces.errors import CoreError, PluginLoadError
from core.registry.context import plugin_context

if TYPE_CHECKING:
    import torch

    from core.interfaces.context import PluginContext
    from core.registry.resolution import Choice, Resolution


def set_up(choice: Choice, call: Callable[..., Any], *args: Any) -> Any:
    """`call(*args)`, which is the chosen plugin's own code. Raises PluginLoadError that names it, unless the plugin
    raises a CoreError."""
    assert choice.record is not None
    try:
        return call(*args)
    except CoreError:
        raise
    except Exception as error:
        raise PluginLoadError(
            f"{choice.record.title} could not be set up: {type(error).__name__}: {error}",
            hint="check its settings (`core config show`), or choose another",
        ) from error


def context_of(resolution: Resolution, choice: Choice, device: torch.device | None = None) -> PluginContext:
    """What the chosen plugin is made with."""
    assert choice.record is not None
    return plugin_context(choice.record, resolution.plugin_settings, device=device)
