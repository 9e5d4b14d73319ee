"""The bitsandbytes plugin through the quantization suite, in each format and from both kinds of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import bitsandbytes.functional as functional
import torch

from core.testing.contracts.quant import QuantContract
from core.testing.contracts.quant_setup import Variant

# Of normal random weights; 4-bit blocks of 64.
NF4_ERROR, FP4_ERROR, INT8_ERROR = 0.11, 0.15, 0.012


def checkpoint(**changes: Any) -> dict[str, Any]:
    return {"quant_method": "bitsandbytes", **changes}


def four_bit(kind: str, **changes: Any) -> dict[str, Any]:
    return checkpoint(load_in_4bit=True, bnb_4bit_quant_type=kind, **changes)


class BitsAndBytesContract(QuantContract):
    name = "bitsandbytes"
    dtypes = ("float32", "bfloat16", "float16")

    def stored(self, variant: Variant, weight: torch.Tensor) -> Mapping[str, torch.Tensor]:
        config = variant.hf_config
        if config is None:
            return {"weight": weight}
        if config.get("load_in_8bit"):
            codes, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
            return {"weight": codes, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        packed, state = functional.quantize_4bit(
            weight,
            blocksize=config.get("x_blocksize", 64),
            compress_statistics=config.get("bnb_4bit_use_double_quant", False),
            quant_type=config["bnb_4bit_quant_type"],
        )
        return {"weight": packed} | {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}

    def skipping(self, variant: Variant, modules: Sequence[str]) -> Variant | None:
        if variant.hf_config is None:
            return replace(variant, settings={**variant.settings, "skip": tuple(modules)})
        return replace(variant, hf_config={**variant.hf_config, "llm_int8_skip_modules": list(modules)})


class TestFourBitCheckpoints(BitsAndBytesContract):
    variants = (
        Variant("nf4", four_bit("nf4"), weight_error=NF4_ERROR, compresses=True),
        Variant("nf4-nested", four_bit("nf4", bnb_4bit_use_double_quant=True), weight_error=NF4_ERROR, compresses=True),
        Variant("fp4", four_bit("fp4"), weight_error=FP4_ERROR, compresses=True),
    )


class TestFourBitWhileLoading(BitsAndBytesContract):
    variants = (
        Variant("nf4", settings={"format": "nf4"}, weight_error=NF4_ERROR, compresses=True),
        Variant("nf4-nested", settings={"nested": True, "fused": False}, weight_error=NF4_ERROR, compresses=True),
        Variant("fp4-256", settings={"format": "fp4", "blocksize": 256}, weight_error=0.18, compresses=True),
    )


# Activations in 8 bits by row; of a few values in a row one may fall between two steps.
INT8_APPLY = 0.04


class TestInt8(BitsAndBytesContract):
    variants = (
        Variant("checkpoint", checkpoint(load_in_8bit=True), {}, INT8_ERROR, INT8_APPLY, compresses=True),
        Variant("while-loading", None, {"format": "int8"}, INT8_ERROR, INT8_APPLY, compresses=True),
    )
