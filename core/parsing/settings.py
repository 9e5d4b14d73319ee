"""Settings that tool parsers share; a manifest names the model: `config = "core.parsing.settings:CallSettings"`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from core.parsing.call_output import HOLD


class CallSettings(BaseModel):
    """Of one tool parser."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hold: int = Field(
        HOLD,
        ge=0,
        description="Characters of a call that are read before its arguments are given out as they come. Up to then "
        "a call is held back until it is complete, so that a malformed one comes back as text.",
    )


def hold_of(settings: Any) -> int:
    """`hold` of a context's settings, which are a plain mapping where nobody validated them."""
    hold = settings.get("hold", HOLD) if hasattr(settings, "get") else settings.hold
    return int(hold)
