"""A protocol's switch for reasoning, in the names that chat templates read."""

from __future__ import annotations

from typing import Any

SWITCHES = ("enable_thinking", "thinking")


def thinking_variables(on: bool | None, effort: str | None = None) -> dict[str, Any]:
    """Template variables. on: None leaves the choice to the template. effort: how much, where a template can tell."""
    made: dict[str, Any] = dict.fromkeys(SWITCHES, on) if on is not None else {}
    if effort is not None:
        made["reasoning_effort"] = effort
    return made
