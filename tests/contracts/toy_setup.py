"""What the suite must be told of the small quantized format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from core.testing.contracts.quant import QuantContract
from core.testing.contracts.quant_setup import Tensors, Variant
from tests.contracts.toy_quant import METHOD, pack


class ToySetup(QuantContract):
    variants = (
        Variant("stored", hf_config={"quant_method": METHOD}, weight_error=0.01, compresses=True),
        Variant("made while loading", weight_error=0.01, compresses=True),
    )

    def stored(self, variant: Variant, weight: torch.Tensor) -> Tensors:
        return dict(zip(("weight", "scale"), pack(weight), strict=True)) if variant.hf_config else {"weight": weight}

    def skipping(self, variant: Variant, modules: Sequence[str]) -> Variant:
        if variant.hf_config is None:
            return replace(variant, settings={"skip": list(modules)})
        return replace(variant, hf_config={**variant.hf_config, "skip": list(modules)})
