"""Settings of this device: `--set nvidia.graphs=demand`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """An unknown or wrong setting stops the start and is named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    graphs: Literal["start", "demand", "off"] = Field(
        "start",
        description="CUDA graphs of decode steps: recorded at the start, each when a step first needs it, or not.",
    )
    max_graph_rows: int = Field(512, ge=1, description="Most rows of a recorded step; larger steps are launched.")
    max_graph_tokens: int = Field(
        512, ge=0, description="Most tokens of a step with prefills that is recorded, all but attention; 0: none."
    )
    tf32: bool = Field(False, description="Let float32 products round their factors to 10 bits of mantissa.")
    reserve_mib: int = Field(768, ge=0, description="Memory that stays free beside KV cache and the largest step, MiB.")
    time_steps: bool = Field(False, description="Measure by events what each step takes on the device.")
