"""Settings of core's own prefix caches (`--set radix.events=true`)."""

from __future__ import annotations

from pydantic import BaseModel, Field


class RadixOptions(BaseModel):
    """Of `radix`."""

    events: bool = Field(False, description="Keep a list of what was stored and evicted, for routers.")
