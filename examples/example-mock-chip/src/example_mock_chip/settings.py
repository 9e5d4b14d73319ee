"""`--set paper.memory_mib=64`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """memory_mib: what the chip has, in MiB."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_mib: int = Field(default=256, ge=1)
