"""Choose the logit processors that requests may name: those that the operator names, and no others."""

from __future__ import annotations

from collections.abc import Sequence

from core.interfaces.errors import ConfigError
from core.registry.catalog import Catalog
from core.registry.resolution import Choice
from core.registry.select_others import NO_PLUGIN

LOGIT_PROCESSORS = "logit_processors"


def choose_logit_processors(asked: Sequence[str], catalog: Catalog) -> tuple[Choice, ...]:
    """The named plugins, each once. Raises PluginError for one that cannot be used, ConfigError for "none" among names.

    None is on by itself: an installed processor is code that any request could have run in every step.
    """
    if tuple(asked) in ((), (NO_PLUGIN,)):
        return ()
    if NO_PLUGIN in asked and not catalog.has(LOGIT_PROCESSORS, NO_PLUGIN):
        raise ConfigError(
            f"logit_processors is {','.join(asked)!r}; {NO_PLUGIN!r} stands alone",
            field="engine.logit_processors",
            value=tuple(asked),
            hint=f"give names of logit processors (`core plugins list --kind {LOGIT_PROCESSORS}`), or {NO_PLUGIN!r}",
        )
    chosen: dict[str, Choice] = {}
    for name in asked:
        record = catalog.record(LOGIT_PROCESSORS, name)
        target = catalog.load(LOGIT_PROCESSORS, name)
        chosen.setdefault(record.full_name, Choice(LOGIT_PROCESSORS, record.name, record, target, "asked for"))
    return tuple(chosen.values())
