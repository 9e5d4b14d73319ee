"""4-bit matrices as bitsandbytes lays them out: quantize, nest, cut, read back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from plugin_bitsandbytes.library import functional as bnb

# Weights quantized at a time: the library's quantizer takes some 20 bytes of working memory for each.
CHUNK = 1 << 18
NESTED_BLOCK = 256
# The code of zero, twice: nibbles of padding.
ZERO_BYTE = {"nf4": 0x77, "fp4": 0x00}


@dataclass(frozen=True, slots=True)
class Nested:
    """Scales of scales: scale i is code[absmax8[i]] * absmax[i // 256] + offset.

    absmax float32 [ceil(blocks / 256)]; code float32 [256]; offset float32, no dimension.
    """

    absmax: torch.Tensor
    code: torch.Tensor
    offset: torch.Tensor


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix [rows, cols] of 4-bit codes in blocks along the flattened matrix, each with a scale.

    packed uint8 [ceil(rows * cols / 2)], the first of two in the high nibble. absmax float32 [ceil(rows * cols /
    block_size)], or uint8 where `nested` holds the scales' own.
    """

    kind: str
    block_size: int
    rows: int
    cols: int
    packed: torch.Tensor
    absmax: torch.Tensor
    nested: Nested | None = None

    def scales(self) -> torch.Tensor:
        """absmax in float32 [blocks], nesting undone just as the library does."""
        if self.nested is None:
            return self.absmax
        outer = self.nested
        op = torch.ops.bitsandbytes.dequantize_blockwise.default
        return op(self.absmax, outer.absmax, outer.code, NESTED_BLOCK, torch.float32) + outer.offset

    def flat(self) -> Blocks:
        """The same without nesting; the same numbers."""
        return self if self.nested is None else replace(self, absmax=self.scales(), nested=None)

    def finer(self, block_size: int) -> Blocks:
        """The same in smaller blocks, without nesting; the same numbers. block_size divides this one's."""
        if block_size == self.block_size:
            return self
        scales = finer_scales(self.scales(), self.rows * self.cols, self.block_size, block_size)
        return replace(self, block_size=block_size, absmax=scales, nested=None)

    def nest(self) -> Blocks:
        """Scales quantized in their turn (double quantization), as the library does it."""
        assert self.nested is None
        offset = self.absmax.mean()
        absmax, state = bnb.quantize_blockwise(self.absmax - offset, blocksize=NESTED_BLOCK)
        return replace(self, absmax=absmax, nested=Nested(state.absmax, state.code, offset))

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """[rows, cols] in float32, bfloat16 or float16."""
        op = torch.ops.bitsandbytes.dequantize_4bit.default
        shape: tuple[int, int] = (self.rows, self.cols)
        numel = self.rows * self.cols
        if self.cols % self.block_size and self.packed.device.type == "cpu":
            # The library's AVX-512 kernel takes a wrong scale where a block goes on into the next row (0.50.2), and
            # compiles a fallback for odd rows on the first call. Blocks are along the flattened matrix anyway.
            shape = (numel // self.block_size, self.block_size) if numel % self.block_size == 0 else (1, numel)
        if shape[1] % 2 == 0 or self.packed.device.type != "cpu":
            return op(self.packed, self.scales(), self.block_size, self.kind, shape, dtype).view(self.rows, self.cols)
        flat = op(self.packed, self.scales(), self.block_size, self.kind, (1, numel + 1), dtype)
        return flat[0, :numel].view(self.rows, self.cols)

    def tensors(self) -> dict[str, torch.Tensor]:
        own = {"packed": self.packed, "absmax": self.absmax}
        if self.nested is None:
            return own
        return own | {"nested_absmax": self.nested.absmax, "nested_offset": self.nested.offset}


def finer_scales(scales: torch.Tensor, numel: int, block_size: int, finer: int) -> torch.Tensor:
    """Scales of blocks of `finer`, a divisor of block_size, over a matrix of numel weights."""
    return scales.repeat_interleave(block_size // finer)[: -(-numel // finer)]


def num_bytes(numel: int) -> int:
    return -(-numel // 2)


def num_blocks(numel: int, block_size: int) -> int:
    return -(-numel // block_size)


def quantize(
    values: torch.Tensor, kind: str, block_size: int, packed: torch.Tensor, absmax: torch.Tensor, dtype: torch.dtype
) -> None:
    """Quantize a matrix [rows, cols], taken as `dtype`, into packed and absmax (shapes as in `Blocks`), a chunk at a
    time."""
    flat = values.reshape(-1)
    op = torch.ops.bitsandbytes.quantize_4bit.default
    for start in range(0, flat.numel(), CHUNK):
        codes, scales = op(flat[start : start + CHUNK].to(packed.device, dtype), block_size, kind, torch.uint8)
        packed[start // 2 :][: codes.numel()].copy_(codes.view(-1))
        absmax[start // block_size :][: scales.numel()].copy_(scales)
