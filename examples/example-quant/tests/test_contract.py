"""Core's contract of quantization methods, for stored and for on-the-fly weights, and of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from example_quant.rows import quantize

from core.testing.contracts.distribution import DistributionContract
from core.testing.contracts.quant import QuantContract
from core.testing.contracts.quant_setup import Variant

ERROR = 0.01  # of the weight, relative: 8 bits over rows of normal values
STORED: Mapping[str, Any] = {"quant_method": "int8_rows"}


class TestInt8Rows(QuantContract):
    name = "int8_rows"
    variants = (
        Variant("stored", hf_config=STORED, weight_error=ERROR, compresses=True),
        Variant("while loading", weight_error=ERROR, compresses=True),
    )

    def stored(self, variant: Variant, weight: torch.Tensor) -> Mapping[str, torch.Tensor]:
        if variant.hf_config is None:
            return {"weight": weight}
        integers, scale = quantize(weight)
        return {"weight": integers, "weight_scale": scale}

    def skipping(self, variant: Variant, modules: Sequence[str]) -> Variant | None:
        if variant.hf_config is None:
            return None  # the list is the checkpoint's
        return replace(variant, hf_config={**STORED, "modules_to_not_convert": list(modules)})


class TestPackage(DistributionContract):
    package = "example_quant"
