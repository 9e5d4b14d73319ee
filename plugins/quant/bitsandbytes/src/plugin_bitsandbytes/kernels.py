"""y = x Wᵀ + b for each way of storing W; which of them, and which product, is chosen here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from plugin_bitsandbytes.blocks import CHUNK, Blocks
from plugin_bitsandbytes.library import functional as bnb

# Rows of x up to which the fused CPU product beats unpacking the weight and a plain one. On one core of a Sapphire
# Rapids Xeon, over the layers of a decoder, the former takes 45 ps a weight and row, the latter 2.3 ns a weight.
FUSED_ROWS = 40
# The library's AVX-512 kernel loses digits with larger blocks, and it turns to a compiled fallback there.
LARGEST_CPU_BLOCK = 1024
# Weights that the fused kernel keeps together: rows of a tile.
TILE_ROWS = 32


class Kernel(ABC):
    """One matrix [rows, cols]. Calling it: x [T, cols] -> [T, rows] in x's dtype, bias added."""

    rows: int
    cols: int

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """[rows, cols] as the product uses it."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """What it keeps, by name."""


class PlainKernel(Kernel):
    """Unquantized, through the device's own linear operation."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, ops: Any) -> None:
        self.rows, self.cols = weight.shape
        self.weight = ops["pack_linear_weight"](weight)
        self.bias = bias
        self.op: Callable[..., torch.Tensor] = ops["linear"]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x, self.weight, self.bias)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        if self.weight.shape == (self.rows, self.cols):
            return self.weight.to(dtype)
        eye = torch.eye(self.cols, dtype=dtype, device=self.weight.device)
        return self.op(eye, self.weight, None).t().contiguous()

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight}


class BlockKernel(Kernel):
    """4-bit in the library's own layout. On a CPU: dequantize, then multiply. Elsewhere the library's `gemm_4bit`,
    which chooses between its fused kernels and the same by shape and device."""

    def __init__(self, blocks: Blocks, bias: torch.Tensor | None, compute: torch.dtype) -> None:
        self.blocks = blocks
        self.rows, self.cols = blocks.rows, blocks.cols
        self.bias = None if bias is None else bias.to(compute)
        self.compute = compute
        self.fused = blocks.packed.device.type != "cpu"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.to(self.compute)
        if not self.fused or not x.shape[0]:
            return F.linear(rows, self.blocks.dense(self.compute), self.bias).to(x.dtype)
        blocks, outer = self.blocks, self.blocks.nested
        y = torch.ops.bitsandbytes.gemm_4bit.default(
            rows,
            blocks.packed.view(-1, 1),
            (blocks.rows, blocks.cols),
            blocks.absmax if outer is None else outer.absmax,
            blocks.block_size,
            blocks.kind,
            bias=self.bias,
            absmax_8bit=None if outer is None else blocks.absmax,
            absmax_code=None if outer is None else outer.code,
            absmax_offset=None if outer is None else outer.offset,
        )
        return y.to(x.dtype)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        return self.blocks.dense(dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        return self.blocks.tensors()


class TiledKernel(Kernel):
    """4-bit in the layout of the library's fused AVX512-BF16 kernel: tiles of 32 rows, scales in bfloat16. Computes
    in bfloat16. The library's own Linear4bit repacks its weights like this on such a CPU."""

    def __init__(self, blocks: Blocks, bias: torch.Tensor | None) -> None:
        self.rows, self.cols = blocks.rows, blocks.cols
        self.kind, self.block_size = blocks.kind, blocks.block_size
        self.packed, self.scales = pack_tiles(blocks)
        self.bias = None if bias is None else bias.to(torch.bfloat16)
        self.code = bnb.get_4bit_type(self.kind, device="cpu")
        self.shape = (self.rows, self.cols)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.to(torch.bfloat16)
        if not 0 < x.shape[0] <= FUSED_ROWS:
            return F.linear(rows, self.dense(torch.bfloat16), self.bias).to(x.dtype)
        y = torch.ops.bitsandbytes.gemv_4bit.default(
            rows.contiguous(), self.packed, self.shape, self.scales, self.code, self.block_size
        )
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        scales = self.scales.t().float().reshape(-1)
        packed = unpack_tiles(self.packed)
        return Blocks(self.kind, self.block_size, self.rows, self.cols, packed, scales).dense(dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"packed": self.packed, "absmax": self.scales}


def pack_tiles(blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """(packed uint8 [rows, cols / 2], scales bfloat16 [cols / block_size, rows]). Some tiles at a time, since the
    library takes a dozen bytes for each weight while it does it."""
    rows, cols = blocks.rows, blocks.cols
    scales = blocks.scales().view(rows, -1)
    codes = blocks.packed.view(rows, -1)
    packed = torch.empty_like(codes)
    step = max(1, CHUNK // (cols * TILE_ROWS)) * TILE_ROWS
    for start in range(0, rows, step):
        part = codes[start : start + step]
        state = bnb.QuantState(
            absmax=scales[start : start + step],
            shape=torch.Size((len(part), cols)),
            blocksize=blocks.block_size,
            quant_type=blocks.kind,
            dtype=torch.bfloat16,
        )
        tiles, _ = bnb._convert_weight_packed_for_cpu(part, state)
        packed[start : start + step].copy_(tiles)
    return packed, scales.t().to(torch.bfloat16).contiguous()


def unpack_tiles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse, uint8 [rows * cols / 2] in the order of `Blocks`. A tile [cols / 2, 32] holds two columns of rows
    r (low nibbles) and r + 16 (high nibbles) in bytes 2r and 2r + 1 of a line."""
    rows, half = packed.shape
    # The transpose first: operations on bytes that lie in a row are vectorised.
    lines = packed.view(rows // TILE_ROWS, half, TILE_ROWS).transpose(1, 2).contiguous()
    lines = lines.view(rows // TILE_ROWS, TILE_ROWS // 2, 2, half)
    first, second = lines[:, :, 0], lines[:, :, 1]
    out = torch.empty(rows // TILE_ROWS, 2, TILE_ROWS // 2, half, dtype=torch.uint8)
    torch.bitwise_or(first << 4, second & 0x0F, out=out[:, 0])
    torch.bitwise_or(first & 0xF0, second >> 4, out=out[:, 1])
    return out.view(-1)


def can_tile(blocks: Blocks) -> bool:
    return blocks.rows % TILE_ROWS == 0 and blocks.cols % blocks.block_size == 0


class Int8Kernel(Kernel):
    """LLM.int8: rows of x and of W scaled to int8, products in int32; input columns with a value of at least
    `threshold` in any row of the call are left out of that and multiplied in x's dtype."""

    def __init__(self, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, threshold: float) -> None:
        self.rows, self.cols = weight.shape
        self.weight, self.scales, self.bias, self.threshold = weight, scales, bias, threshold

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not x.shape[0]:
            return x.new_empty(0, self.rows)
        ops = torch.ops.bitsandbytes
        # The library's quantizer takes float16, and sets outliers to zero in what it is given for a while.
        half = x.to(torch.float16, copy=x.dtype == torch.float16 and self.threshold > 0)
        codes, scales, columns = ops.int8_vectorwise_quant.default(half, self.threshold)
        if self.threshold > 0:
            y, _ = ops.int8_mixed_scaled_mm.default(x, codes, self.weight, scales, self.scales, columns, self.bias)
            return y
        return ops.int8_scaled_mm.default(codes, self.weight, scales, self.scales, bias=self.bias, dtype=x.dtype)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.ops.bitsandbytes.int8_vectorwise_dequant.default(self.weight, self.scales).to(dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"int8": self.weight, "scale": self.scales}


class Stack:
    """Matrices of one input, one under the other: x [T, cols] -> [T, sum of rows]."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self.kernels = tuple(kernels)
        self.only = self.kernels[0] if len(self.kernels) == 1 else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.only is not None:
            return self.only(x)
        return torch.cat([kernel(x) for kernel in self.kernels], -1)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.cat([kernel.dense(dtype) for kernel in self.kernels])

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}_{number}" if self.only is None else name: tensor
            for number, kernel in enumerate(self.kernels)
            for name, tensor in kernel.tensors().items()
        }
