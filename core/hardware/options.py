"""Settings of core's own hardware backends (`--set cpu.threads=4`)."""

from __future__ import annotations

from pydantic import BaseModel, Field


class CpuOptions(BaseModel):
    """Of `cpu`."""

    threads: int | None = Field(None, ge=1, description="Compute threads. Default: --cpu-threads, else all cores.")
