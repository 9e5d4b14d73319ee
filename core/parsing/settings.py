"""Settings that tool parsers share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_HOLD = 256


class CallSettings(BaseModel):
    """`--set NAME.hold=0` and so on, of a tool parser."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hold: int = Field(
        DEFAULT_HOLD,
        ge=0,
        description="Characters of arguments that a call is held back for; a call that breaks within them is text.",
    )


def hold_of(settings: object) -> int:
    """The setting, or its default where a parser was made without settings."""
    return settings.hold if isinstance(settings, CallSettings) else DEFAULT_HOLD
