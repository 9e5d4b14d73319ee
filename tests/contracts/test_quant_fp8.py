"""The fp8 plugin through the quantization suite: every layout of a checkpoint, and quantized while loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import pad

from core.testing.contracts.quant import QuantContract
from core.testing.contracts.quant_setup import Variant

# Of normal random weights: three bits of mantissa. Activations have as many.
WEIGHT, APPLY = 0.03, 0.05
FLOAT = {"num_bits": 8, "type": "float", "symmetric": True}


def compressed(strategy: str, *, static: bool = False, **changes: Any) -> dict[str, Any]:
    weights = {**FLOAT, "strategy": strategy, "dynamic": False}
    if strategy == "block":
        weights["block_structure"] = [128, 128]
    inputs = {**FLOAT, "strategy": "tensor" if static else "token", "dynamic": not static}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head_of_another"],
        **changes,
    }


def plain(**changes: Any) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": "dynamic", **changes}


def blocks(weight: torch.Tensor, size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """(e4m3, scales of blocks), as DeepSeek-V3's checkpoints define them: weight = stored * scale."""
    rows, cols = weight.shape
    padded = pad(weight.float(), (0, -cols % size, 0, -rows % size))
    tiles = padded.view(padded.shape[0] // size, size, padded.shape[1] // size, size)
    scale = tiles.abs().amax((1, 3)).clamp_min(1e-12) / 448
    stored = (tiles / scale[:, None, :, None]).reshape(padded.shape)[:rows, :cols]
    return stored.to(torch.float8_e4m3fn), scale


class Fp8Contract(QuantContract):
    name = "fp8"
    dtypes = ("float32", "bfloat16", "float16")

    def stored(self, variant: Variant, weight: torch.Tensor) -> Mapping[str, torch.Tensor]:
        config = variant.hf_config
        if config is None:
            return {"weight": weight}
        if "block" in variant.label:
            values, scale = blocks(weight)
            return {"weight": values, "weight_scale_inv" if config["quant_method"] == "fp8" else "weight_scale": scale}
        wide = weight.float()
        by_channel = "channel" in variant.label
        largest = wide.abs().amax(1, keepdim=True) if by_channel else wide.abs().amax()
        scale = largest.clamp_min(1e-12) / 448
        held = {"weight": (wide / scale).to(torch.float8_e4m3fn), "weight_scale": scale}
        if "static" in variant.label:
            held["input_scale"] = torch.tensor(4.0 / 448)  # of normal random inputs, nearly all
        return held

    def skipping(self, variant: Variant, modules: Sequence[str]) -> Variant | None:
        config = variant.hf_config
        if config is None:
            return replace(variant, settings={**variant.settings, "skip": tuple(modules)})
        name = "ignore" if config["quant_method"] == "compressed-tensors" else "modules_to_not_convert"
        return replace(variant, hf_config={**config, name: list(modules)})


class TestWhileLoading(Fp8Contract):
    # The suite's output embedding is to be quantized too.
    variants = (Variant("online", None, {"skip": ("nothing",)}, WEIGHT, APPLY, compresses=True),)


class TestTensors(Fp8Contract):
    variants = (
        Variant("dynamic", plain(), {}, WEIGHT, APPLY, compresses=True),
        Variant("static", plain(activation_scheme="static"), {}, WEIGHT, APPLY, compresses=True),
        Variant("compressed-static", compressed("tensor", static=True), {}, WEIGHT, APPLY, compresses=True),
    )


class TestChannels(Fp8Contract):
    variants = (Variant("channel", compressed("channel"), {}, WEIGHT, APPLY, compresses=True),)


class TestBlocks(Fp8Contract):
    variants = (
        Variant("block", plain(weight_block_size=[128, 128]), {}, WEIGHT, APPLY, compresses=True),
        Variant("block-compressed", compressed("block"), {}, WEIGHT, APPLY, compresses=True),
    )
