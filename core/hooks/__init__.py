"""Hooks at run time: the manager that calls listeners, and the metrics they bring.

What lives here: construction of the chosen hook plugins, isolation of the ones that fail; `metrics.PluginMetrics`,
which only servers import.
What does not: the hooks themselves (core.interfaces.hooks), their selection (core.registry.select_listeners), the
places that call them (core.engine, core.server).
"""

from core.hooks.manager import HookManager, public_settings

__all__ = ["HookManager", "public_settings"]
