"""Options of the expert runner."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """`--set moe/triton.KEY=VALUE`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tables: Path | None = Field(
        default=None, description="folder of further tables of tiles, as `core tune-moe --folder` writes them"
    )
