"""Groups of NF4 and FP4 matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from core.interfaces.errors import WeightError
from plugin_bitsandbytes.blocks import ZERO_BYTE, Blocks, num_blocks, num_bytes, quantize
from plugin_bitsandbytes.cut import Cut
from plugin_bitsandbytes.groups import Group, joined, parameter
from plugin_bitsandbytes.kernels import LARGEST_CPU_BLOCK, BlockKernel, Kernel, TiledKernel, can_tile
from plugin_bitsandbytes.state import SUFFIXES, read_blocks


class FourBitGroup(Group):
    """Storage: packed uint8 [num, bytes] and absmax float32 [num, blocks], part after part. The checkpoint's own
    blocks, if of another size, replace absmax."""

    suffixes = SUFFIXES

    def create(self, module: nn.Module) -> None:
        sizes = [cut.numel for cut in self.cuts.values()]
        shape = (self.num, sum(num_bytes(size) for size in sizes))
        blocks = (self.num, sum(num_blocks(size, self.format.block_size) for size in sizes))
        device = self.place.device
        packed = torch.empty(shape, dtype=torch.uint8, device=device)
        module.register_parameter(f"{self.prefix}packed", parameter(packed))
        module.register_parameter(f"{self.prefix}absmax", parameter(torch.empty(blocks, device=device)))

    def _packed(self, module: Any, part: str, index: int) -> torch.Tensor:
        start = 0
        for name, cut in self.cuts.items():
            size = num_bytes(cut.numel)
            if name == part:
                return getattr(module, f"{self.prefix}packed").data[index].narrow(0, start, size)
            start += size
        raise AssertionError(part)

    def _absmax(self, module: Any, part: str, index: int) -> torch.Tensor:
        start = 0
        for name, cut in self.cuts.items():
            size = num_blocks(cut.numel, self.format.block_size)
            if name == part:
                return getattr(module, f"{self.prefix}absmax").data[index].narrow(0, start, size)
            start += size
        raise AssertionError(part)

    def store(self, module: nn.Module, cut: Cut, part: str, index: int, tensor: torch.Tensor) -> None:
        packed, absmax = self._packed(module, part, index), self._absmax(module, part, index)
        if cut.kept_rows < cut.rows:
            packed.fill_(ZERO_BYTE[self.format.kind])
            absmax.zero_()
        quantize(cut.take(tensor), self.format.kind, self.format.block_size, packed, absmax, self.place.dtype)

    def take(self, module: nn.Module, cut: Cut, part: str, index: int, tensor: torch.Tensor) -> None:
        numel = cut.full_rows * cut.full_cols
        given = tensor.reshape(-1).view(torch.uint8)
        # A packed weight is one column of its storage dtype.
        if tensor.dim() != 2 or tensor.shape[1] != 1 or given.numel() != num_bytes(numel):
            raise WeightError(
                f"{tensor.dtype} of shape {list(tensor.shape)} is neither the matrix [{cut.full_rows}, "
                f"{cut.full_cols}] nor its {num_bytes(numel)} bytes of 4-bit codes",
                hint="config.json and the weight files are of different models",
            )
        cut.check()
        packed = self._packed(module, part, index)
        if cut.kept_rows < cut.rows:
            packed.fill_(ZERO_BYTE[self.format.kind])
        if cut.cols != cut.full_cols:
            codes = given.view(cut.full_rows, cut.full_cols // 2)
            half = codes.narrow(1, cut.first_col // 2, cut.cols // 2)
            packed.view(cut.rows, -1)[: cut.kept_rows].copy_(half.narrow(0, cut.first_row, cut.kept_rows))
        elif cut.kept_rows:
            kept = num_bytes(cut.kept_rows * cut.cols)
            packed[:kept].copy_(given.narrow(0, cut.first_row * cut.cols // 2, kept))

    def kernels(
        self, module: nn.Module, index: int, parts: Sequence[str], bias: Mapping[str, torch.Tensor]
    ) -> list[Kernel]:
        blocks = [self._blocks(module, part, index) for part in parts]
        if self.place.fused:
            together = merged([each.flat() for each in blocks])
            if len(together) == 1 and can_tile(together[0]):
                return [TiledKernel(together[0], joined(parts, bias))]
        found: list[Kernel] = []
        names = list(parts)
        for each in merged(blocks):
            own: list[str] = []
            rows = 0
            while rows < each.rows:
                own.append(names.pop(0))
                rows += self.cuts[own[-1]].rows
            found.append(BlockKernel(each, joined(own, bias), self.place.compute))
        return found

    def _blocks(self, module: nn.Module, part: str, index: int) -> Blocks:
        cut, packed = self.cut(part, index), self._packed(module, part, index)
        if self.format.prequantized and (part, index) in self.loaded:
            blocks = read_blocks(self.beside.get((part, index), {}), packed, cut)
        else:
            absmax = self._absmax(module, part, index)
            blocks = Blocks(self.format.kind, self.format.block_size, cut.rows, cut.cols, packed, absmax)
            if self.format.nested:
                blocks = blocks.nest()
        if packed.device.type == "cpu" and blocks.block_size > LARGEST_CPU_BLOCK:
            blocks = blocks.finer(LARGEST_CPU_BLOCK)
        return blocks

    def drop(self, module: nn.Module) -> None:
        delattr(module, f"{self.prefix}packed")
        delattr(module, f"{self.prefix}absmax")


def merged(blocks: Sequence[Blocks]) -> list[Blocks]:
    """Neighbours in one storage as one matrix, where that changes nothing: same format and block size, no nesting
    (each has its own offset), and no block that would hold weights of two."""
    found = [blocks[0]]
    for each in blocks[1:]:
        last = found[-1]
        numel = last.rows * last.cols
        same = (last.kind, last.block_size, last.cols) == (each.kind, each.block_size, each.cols)
        adjacent = last.packed.data_ptr() + last.packed.numel() == each.packed.data_ptr()
        if same and adjacent and not (last.nested or each.nested) and numel % last.block_size == 0:
            size = last.packed.numel() + each.packed.numel()
            packed = last.packed.as_strided((size,), (1,))
            absmax = torch.cat((last.absmax, each.absmax))
            found[-1] = replace(last, rows=last.rows + each.rows, packed=packed, absmax=absmax)
        else:
            found.append(each)
    return found
