"""Settings of this backend: `--set fa3.provider=sglang`. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ProviderName = Literal["auto", "sglang", "vllm", "flash_attn"]


class Settings(BaseModel):
    """An unknown or wrong setting stops the start and is named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: ProviderName = Field(
        "auto",
        description="Whose build of the kernels: sglang (distribution sglang-kernel), vllm, or flash_attn "
        "(flash_attn_3, upstream's). auto: the first of these that is installed, loads and can serve the model.",
    )
    num_splits: int = Field(
        0,
        ge=0,
        le=128,
        description="Parts that the keys of a decoded sequence are split into at most, computed side by side. "
        "1 never splits; 0 decides by the number of rows.",
    )
    shared_prefixes: bool = Field(
        True,
        description="Read the keys of a prefix that many decoded sequences share once for all of them.",
    )
