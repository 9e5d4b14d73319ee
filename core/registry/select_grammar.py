"""Choose the grammar backend, which makes texts fit a form."""

from __future__ import annotations

from core.registry.candidates import Rejected, by_priority, loadable, why_not
from core.registry.catalog import Catalog
from core.registry.resolution import Choice
from core.registry.select_others import NO_PLUGIN

GRAMMAR = "grammar"


def choose_grammar(asked: str, hardware: str, catalog: Catalog) -> Choice:
    """The operator's backend, else the first by priority that can be used. None installed is no error: requests that
    need one are refused, saying so. Raises PluginError for a named one that cannot be used.

    Plugins import their libraries when they are made, so that this costs a start nothing.
    """
    if asked == NO_PLUGIN and not catalog.has(GRAMMAR, NO_PLUGIN):
        return Choice(GRAMMAR, NO_PLUGIN, None, None, "turned off: requests for structured output are refused")
    if asked != "auto":
        record = catalog.record(GRAMMAR, asked)
        return Choice(GRAMMAR, record.name, record, catalog.load(GRAMMAR, asked), "asked for")
    rejected: Rejected = []
    chosen: Choice | None = None
    for record in by_priority(catalog, GRAMMAR):
        if chosen is not None:
            rejected.append((record.name, why_not(catalog, record, hardware) or "comes after the chosen one"))
            continue
        for found, target in loadable(catalog, [record], hardware, rejected):
            chosen = Choice(GRAMMAR, found.name, found, target, "first by priority that can be used")
    if chosen is None:
        why = "none that is installed can be used" if rejected else "none is installed"
        return Choice(GRAMMAR, NO_PLUGIN, None, None, f"{why}: requests for structured output are refused",
                      tuple(rejected))  # fmt: skip
    return Choice(GRAMMAR, chosen.name, chosen.record, chosen.target, chosen.reason, tuple(rejected))
