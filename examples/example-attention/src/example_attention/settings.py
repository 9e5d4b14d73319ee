"""`--set streaming.block_tokens=64`, `plugins: {streaming: {block_tokens: 64}}` in a file, or the environment."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """block_tokens: keys that are looked at at once; rounded up to whole pages."""

    model_config = ConfigDict(extra="forbid", frozen=True)  # a misspelt name is an error

    block_tokens: int = Field(default=256, ge=1, le=65536)
