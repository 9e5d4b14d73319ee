"""The tensors that bitsandbytes writes beside a 4-bit weight: names, checks, and a rank's share of the scales."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from core.interfaces.errors import WeightError
from plugin_bitsandbytes.blocks import NESTED_BLOCK, Blocks, Nested, finer_scales, num_blocks
from plugin_bitsandbytes.config import BLOCK_SIZES, FOUR_BIT
from plugin_bitsandbytes.cut import Cut
from plugin_bitsandbytes.library import functional as bnb

ABSMAX = "weight.absmax"
CODE = "weight.quant_map"
NESTED_ABSMAX = "weight.nested_absmax"
NESTED_CODE = "weight.nested_quant_map"
HEADERS = {f"weight.quant_state.bitsandbytes__{kind}": kind for kind in FOUR_BIT}
SUFFIXES = (ABSMAX, CODE, NESTED_ABSMAX, NESTED_CODE, *HEADERS)
# A header is some 200 bytes of JSON.
_MAX_HEADER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Header:
    """What the JSON in the quant_state tensor says. nested_offset: None without nesting."""

    kind: str
    block_size: int
    nested_offset: float | None


def read_blocks(tensors: Mapping[str, torch.Tensor], packed: torch.Tensor, cut: Cut) -> Blocks:
    """One matrix from what a checkpoint gives beside its weight. packed: this rank's bytes, cut already.

    tensors: suffix -> tensor, whole. Raises WeightError naming the checkpoint's tensor.
    """
    header = _header(tensors, cut)
    numel = cut.full_rows * cut.full_cols
    blocks = num_blocks(numel, header.block_size)
    nested = header.nested_offset is not None
    absmax = _tensor(tensors, ABSMAX, cut, torch.uint8 if nested else torch.float32, blocks)
    _check_code(_tensor(tensors, CODE, cut, torch.float32, 16), header.kind, cut)
    outer = None
    if header.nested_offset is not None:
        outer = Nested(
            _tensor(tensors, NESTED_ABSMAX, cut, torch.float32, num_blocks(blocks, NESTED_BLOCK)),
            _tensor(tensors, NESTED_CODE, cut, torch.float32, 256),
            torch.tensor(header.nested_offset, dtype=torch.float32),
        )
    elif extra := sorted({NESTED_ABSMAX, NESTED_CODE} & set(tensors)):
        raise WeightError(f"{cut.name}.{extra[0]} is given, but {_header_name(tensors, cut)} has no nested_offset")
    device = packed.device
    absmax = absmax.to(device)
    if outer is not None:
        outer = Nested(outer.absmax.to(device), outer.code.to(device), outer.offset.to(device))
    whole = Blocks(header.kind, header.block_size, cut.full_rows, cut.full_cols, packed, absmax, outer)
    return whole if cut.whole else _cut(whole, packed, cut)


def _cut(whole: Blocks, packed: torch.Tensor, cut: Cut) -> Blocks:
    """`whole` has all scales; the result has this rank's."""
    size = cut.finest(whole.block_size) if cut.kept_rows else whole.block_size
    numel = whole.rows * whole.cols
    scales = finer_scales(whole.scales(), numel, whole.block_size, size)
    if cut.cols != cut.full_cols:
        scales = scales.view(cut.full_rows, -1)
        scales = scales.narrow(1, cut.first_col // size, cut.cols // size)
        scales = scales.narrow(0, min(cut.first_row, cut.full_rows), cut.kept_rows).reshape(-1)
    else:
        start = min(cut.first_row, cut.full_rows) * cut.full_cols
        kept = num_blocks(cut.kept_rows * cut.full_cols, size)
        scales = scales[start // size :][:kept]
    wanted = num_blocks(cut.numel, size)
    padded = torch.zeros(wanted, dtype=torch.float32, device=scales.device)
    padded[: scales.numel()].copy_(scales)
    return Blocks(whole.kind, size, cut.rows, cut.cols, packed, padded)


def _header_name(tensors: Mapping[str, torch.Tensor], cut: Cut) -> str:
    return f"{cut.name}.{next(name for name in HEADERS if name in tensors)}"


def _header(tensors: Mapping[str, torch.Tensor], cut: Cut) -> Header:
    found = [name for name in HEADERS if name in tensors]
    if not found:
        raise WeightError(
            f"{cut.name}.weight is packed, but there is no {cut.name}.weight.quant_state.bitsandbytes__nf4 or __fp4",
            hint="download the checkpoint again",
        )
    if len(found) > 1:
        raise WeightError(f"{cut.name} has both {found[0]} and {found[1]}", hint="download the checkpoint again")
    where = f"{cut.name}.{found[0]}"
    content = _json(tensors[found[0]], where)

    def get(name: str, kind: type | tuple[type, ...]) -> Any:
        value = content.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise WeightError(f"{where}: {name} is {value!r}", hint="download the checkpoint again")
        return value

    if get("quant_type", str) != HEADERS[found[0]]:
        raise WeightError(f"{where}: quant_type is {content['quant_type']!r}", hint="download the checkpoint again")
    block_size = get("blocksize", int)
    if block_size not in BLOCK_SIZES:
        raise WeightError(
            f"{where}: blocksize is {block_size}, which bitsandbytes has no kernel for",
            hint=f"it takes {', '.join(map(str, BLOCK_SIZES))}",
        )
    shape = get("shape", list)
    if shape != [cut.full_rows, cut.full_cols]:
        raise WeightError(
            f"{where}: shape is {shape}, expected {[cut.full_rows, cut.full_cols]}",
            hint="config.json and the weight files are of different models",
        )
    if "nested_offset" not in content:
        return Header(HEADERS[found[0]], block_size, None)
    offset = float(get("nested_offset", (int, float)))
    if not math.isfinite(offset):
        raise WeightError(f"{where}: nested_offset is {offset}", hint="download the checkpoint again")
    if get("nested_blocksize", int) != NESTED_BLOCK:
        raise WeightError(
            f"{where}: nested_blocksize is {content['nested_blocksize']}, and bitsandbytes has kernels for "
            f"{NESTED_BLOCK} only",
            hint="quantize the checkpoint again",
        )
    return Header(HEADERS[found[0]], block_size, offset)


def _json(tensor: torch.Tensor, where: str) -> dict[str, Any]:
    if tensor.dtype != torch.uint8 or tensor.dim() != 1 or tensor.numel() > _MAX_HEADER_BYTES:
        raise WeightError(
            f"{where}: {tensor.dtype} of shape {list(tensor.shape)}, expected the bytes of a JSON text",
            hint="download the checkpoint again",
        )
    try:
        content = json.loads(tensor.numpy().tobytes().decode())
    except ValueError as error:
        raise WeightError(f"{where}: not a JSON text: {error}", hint="download the checkpoint again") from error
    if not isinstance(content, dict):
        raise WeightError(f"{where}: not a JSON object", hint="download the checkpoint again")
    return content


def _tensor(tensors: Mapping[str, torch.Tensor], suffix: str, cut: Cut, dtype: torch.dtype, numel: int) -> torch.Tensor:
    where = f"{cut.name}.{suffix}"
    tensor = tensors.get(suffix)
    if tensor is None:
        raise WeightError(f"{where} is missing, and {cut.name}.weight needs it", hint="download the checkpoint again")
    if tensor.dtype != dtype or tensor.numel() != numel:
        raise WeightError(
            f"{where}: {tensor.dtype} of shape {list(tensor.shape)}, expected {dtype} of shape [{numel}]",
            hint="download the checkpoint again",
        )
    if dtype.is_floating_point and not bool(tensor.isfinite().all()):
        raise WeightError(f"{where} has values that are not finite", hint="download the checkpoint again")
    return tensor.reshape(-1)


def _check_code(code: torch.Tensor, kind: str, cut: Cut) -> None:
    """The kernels have the table of values built in, so that another one cannot be served."""
    own = bnb.get_4bit_type(kind, device="cpu")
    if not torch.allclose(code, own, rtol=0, atol=1e-6):
        raise WeightError(
            f"{cut.name}.{CODE} is not the table of {kind}, which the kernels have built in",
            hint="quantize the checkpoint again with bitsandbytes' own types",
        )
