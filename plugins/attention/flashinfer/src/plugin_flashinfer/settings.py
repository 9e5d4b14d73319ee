"""Settings of this backend: `--set flashinfer.kernels=fa2`. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """An unknown or wrong setting stops the start and is named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kernels: Literal["auto", "fa2", "fa3"] = Field(
        "auto",
        description="Which of FlashInfer's kernels: fa2 runs from compute capability 8.0 on, fa3 on 9.0 and takes "
        "longer to compile; auto leaves it to FlashInfer.",
    )
    workspace_mib: int = Field(
        256, ge=32, description="Device memory for partial results of sequences that are computed in parts."
    )
