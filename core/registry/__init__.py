"""Discovery, selection and compatibility of plugins. Reads manifests as files; imports only what is chosen.

What lives here: manifests, the catalog of installed plugins, `resolve` (settings to one Resolution) with a file
for each selection, lock sets for child processes, plugins' own settings and contexts, and in `health` the
rules by which plugins and packages are examined.
`from core.registry.resolve import resolve` is not re-exported: it would hide the module of that name.
What does not: plugins, settings (core.config), and anything that needs a device.
"""

from core.registry.catalog import Catalog
from core.registry.context import plugin_context
from core.registry.lock import LockedPlugin, LockSet
from core.registry.records import PluginRecord
from core.registry.resolution import Choice, Decision, Resolution

__all__ = [
    "Catalog",
    "Choice",
    "Decision",
    "LockSet",
    "LockedPlugin",
    "PluginRecord",
    "Resolution",
    "plugin_context",
]
