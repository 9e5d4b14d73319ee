"""`--set request_log.path=requests.jsonl`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """path: file to append to; None writes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path | None = None
