"""Every kernel of the experts compiles for every GPU, with every tile of the bundled tables and the general ones."""

from __future__ import annotations

from typing import Any

import pytest
import triton
from cross_compile import TARGETS, cross_compile

from plugin_triton.moe import gemv, grouped, sorting
from plugin_triton.moe.configs import MoeConfig, Shape, Tile, fallback
from plugin_triton.moe.fp8 import CODES

SHAPE = {"TOP_K": 8, "HIDDEN": 2048, "INTER": 768}
FORMATS = {"plain": "*bf16", "fp8_channel": "*fp8e4nv", "fp8_block128": "*fp8e4nv"}


def grouped_arguments(config: MoeConfig, kernel: int, format_: str, overlap: bool) -> tuple[dict[str, Any], Tile]:
    """Of a launch of gate_up (0) or down (1)."""
    tile = (config.gate_up, config.down)[kernel]
    block_k = 128 if format_ == "fp8_block128" else tile.block_k
    stored = FORMATS[format_]
    kind = stored.removeprefix("*")
    given: dict[str, Any] = {
        "x": stored, "STRIDE_X": 2048, "x_scale": "*fp32", "weight": stored,
        "described": f"tensordesc<{kind}[{tile.block_n},{block_k}]>" if overlap and tile.tma else None,
        "w_scale": "*fp32", "y": "*bf16", "factors": "*fp32", "numbers": "*i32", "num_blocks": "i32",
        "N": (768, 2048)[kernel], "K": (2048, 768)[kernel], "SHARE": (8, 1)[kernel], "ACT": (0, -1)[kernel],
        "FORMAT": CODES[format_], "BLOCK_M": config.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": block_k,
        "GROUP_M": tile.group_m, "EVEN_K": True, "TMA": overlap and tile.tma, "SWAP": tile.swap,
        "KEEP": "evict_first" if config.block_m == 16 else "", "PDL": overlap,
    }  # fmt: skip
    return given, tile


@pytest.mark.parametrize("target", TARGETS)
def test_a_few_tokens(target: str) -> None:
    overlap = target.startswith("sm")
    for format_, stored in FORMATS.items():
        config = fallback(Shape(128, 8, 2048, 768, format_), 1, overlap)
        common = {**SHAPE, "FORMAT": CODES[format_], "KEEP": "evict_first", "PDL": overlap}
        first = {"BLOCK_N": config.gate_up.block_n, "BLOCK_K": config.gate_up.block_k, "ACT": 0}
        second = {"BLOCK_N": config.down.block_n, "BLOCK_K": config.down.block_k, "AHEAD": config.down.stages}
        inputs = {"weight": stored, "scale": "*fp32", "h": "*fp32", "ids": "*i64"}
        cross_compile(
            gemv._gate_up,
            {"x": "*bf16", "STRIDE_X": 2048, "num_pairs": "i32", **inputs, **common, **first},
            target, num_warps=config.gate_up.warps, launch_pdl=True,
        )  # fmt: skip
        cross_compile(
            gemv._down, {"out": "*bf16", "factors": "*fp32", "tokens": "i32", **inputs, **common, **second},
            target, num_warps=config.down.warps, launch_pdl=True,
        )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_sorting_and_the_sum(target: str) -> None:
    overlap = target.startswith("sm")
    sizes = {"BINS": 128, "CHUNK": 1024, "PDL": overlap}
    given = {"ids": "*i64", "numbers": "*i32", "num_pairs": "i32", "num_blocks": "i32", **sizes}
    cross_compile(sorting._count, given, target, num_warps=8, launch_pdl=True)
    for alone in (True, False):
        given = {**given, "num_chunks": "i32", "BLOCK_M": 16, "ROWS": 32, "ALONE": alone}
        cross_compile(sorting._place, given, target, num_warps=8, launch_pdl=True)
    given = {"y": "*bf16", "out": "*bf16", "HIDDEN": 2048, "TOP_K": 8, "BLOCK": 1024, "PDL": overlap}
    cross_compile(grouped._combine, given, target, num_warps=4, launch_pdl=True)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("target", TARGETS)
def test_general_tiles(target: str, format_: str) -> None:
    """Of all sizes, which fit every chip; the tensor cores of Hopper and the memory accelerator are made use of."""
    overlap = target.startswith("sm")
    shape = Shape(128, 8, 2048, 768, format_)
    for tokens in (64, 256, 1024, 8192) if format_ == "plain" else (64, 8192):
        config = fallback(shape, tokens, overlap)
        for kernel in (0, 1):
            given, tile = grouped_arguments(config, kernel, format_, overlap)
            compiled = cross_compile(
                grouped._grouped, given, target, num_warps=tile.warps, num_stages=tile.stages, launch_pdl=True
            )
            if target == "sm_90":
                assert ("wgmma.mma_async" in compiled.asm["ptx"]) == (config.block_m >= 64 or tile.swap)
                assert ("cp.async.bulk.tensor" in compiled.asm["ptx"]) == tile.tma
            if overlap:
                assert "griddepcontrol.wait" in compiled.asm["ptx"]


def test_interpreter_is_off() -> None:
    """Or nothing above would have been compiled."""
    assert not triton.knobs.runtime.interpret
