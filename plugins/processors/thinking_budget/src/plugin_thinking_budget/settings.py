"""Settings: `--set thinking_budget.end=[/THINK]`. No torch here: settings are checked before anything is loaded."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Markers around reasoning, which a request may replace by its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: str = Field("<think>", description="Where reasoning begins. Empty: with the answer.")
    end: str = Field("</think>", min_length=1, description="Where reasoning ends.")
