"""The plugin's own settings (`--set fp8.skip=lm_head`). Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_SKIP = ("lm_head", "gate", "router", "shared_expert_gate")


class Options(BaseModel):
    """`skip` is for checkpoints that are quantized while they load; one that is quantized already states its own, and
    setting it then is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    skip: tuple[str, ...] = Field(
        DEFAULT_SKIP, description="Modules to leave unquantized; an entry names whole dotted segments."
    )
