"""The plugin's own settings (`--set bitsandbytes.format=nf4`). Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """`format`, `nested`, `blocksize`, `threshold` and `skip` say how to quantize an unquantized checkpoint; a
    checkpoint that is quantized states its own, and setting them then is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["nf4", "fp4", "int8"] = Field("nf4", description="Format to quantize to.")
    nested: bool = Field(False, description="4-bit: quantize the blocks' scales too (double quantization).")
    blocksize: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = Field(
        64, description="4-bit: weights that share a scale."
    )
    threshold: float = Field(
        6.0,
        ge=0,
        description="int8: input columns that reach this value are computed unquantized; 0: none.",
    )
    skip: tuple[str, ...] = Field(
        ("lm_head", "gate", "router", "shared_expert_gate"),
        description="Modules to leave unquantized; an entry names whole dotted segments.",
    )
    compute_dtype: Literal["model", "checkpoint", "float32", "bfloat16", "float16"] = Field(
        "model",
        description="4-bit: dtype of the products. model: that of --dtype; checkpoint: its bnb_4bit_compute_dtype.",
    )
    fused: bool = Field(
        True,
        description="4-bit in bfloat16 on CPUs with AVX512-BF16: repack weights for the fused kernel.",
    )
