"""Groups of int8 matrices (LLM.int8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from core.interfaces.errors import ConfigError, WeightError
from plugin_bitsandbytes.blocks import CHUNK
from plugin_bitsandbytes.cut import Cut
from plugin_bitsandbytes.groups import Group, joined, parameter
from plugin_bitsandbytes.kernels import Int8Kernel, Kernel

SCALES = "SCB"
LAYOUT = "weight_format"
_ROW_MAJOR = 0


class Int8Group(Group):
    """Storage: int8 [num, rows, cols] and scale float32 [num, rows], part after part. A weight is its code times its
    row's scale / 127."""

    suffixes = (SCALES, LAYOUT)

    def create(self, module: nn.Module) -> None:
        rows = sum(cut.rows for cut in self.cuts.values())
        cols = next(iter(self.cuts.values())).cols
        device = self.place.device
        if cols == 1 and device.type == "cpu":  # torch._int_mm, which the library calls, reads past a single column
            name = next(iter(self.cuts.values())).name
            raise ConfigError(
                f"{name} has a single input, for which there is no int8 product on CPUs",
                field="model.quantization",
                value="bitsandbytes",
                hint="use format nf4, or leave the module out with bitsandbytes.skip",
            )
        codes = torch.empty(self.num, rows, cols, dtype=torch.int8, device=device)
        module.register_parameter(f"{self.prefix}int8", parameter(codes))
        module.register_parameter(f"{self.prefix}scale", parameter(torch.empty(self.num, rows, device=device)))

    def _rows(self, module: Any, name: str, index: int, parts: Sequence[str]) -> torch.Tensor:
        """The rows of neighbouring parts. A view."""
        start = 0
        for part, cut in self.cuts.items():
            if part == parts[0]:
                break
            start += cut.rows
        size = sum(self.cuts[part].rows for part in parts)
        return getattr(module, f"{self.prefix}{name}").data[index].narrow(0, start, size)

    def store(self, module: nn.Module, cut: Cut, part: str, index: int, tensor: torch.Tensor) -> None:
        codes, scales = self._rows(module, "int8", index, [part]), self._rows(module, "scale", index, [part])
        codes[cut.kept_rows :].zero_()
        scales[cut.kept_rows :].zero_()
        values = cut.take(tensor)
        step = max(1, CHUNK // max(1, cut.cols))
        for start in range(0, cut.kept_rows, step):
            # The library quantizes weights in float16, whatever the model's dtype.
            half = values[start : start + step].to(codes.device, self.place.dtype).to(torch.float16)
            own, absmax, _ = torch.ops.bitsandbytes.int8_vectorwise_quant.default(half)
            codes[start : start + len(own)].copy_(own)
            scales[start : start + len(own)].copy_(absmax)

    def take(self, module: nn.Module, cut: Cut, part: str, index: int, tensor: torch.Tensor) -> None:
        if tensor.dtype != torch.int8 or tuple(tensor.shape) != (cut.full_rows, cut.full_cols):
            raise WeightError(
                f"{tensor.dtype} of shape {list(tensor.shape)}, expected torch.int8 of shape "
                f"[{cut.full_rows}, {cut.full_cols}]",
                hint="config.json and the weight files are of different models",
            )
        codes = self._rows(module, "int8", index, [part])
        codes[cut.kept_rows :].zero_()
        codes[: cut.kept_rows].copy_(cut.take(tensor))

    def kernels(
        self, module: nn.Module, index: int, parts: Sequence[str], bias: Mapping[str, torch.Tensor]
    ) -> list[Kernel]:
        for part in parts:
            if self.format.prequantized and (part, index) in self.loaded:
                self._read_scales(module, part, index)
        codes, scales = (self._rows(module, name, index, parts) for name in ("int8", "scale"))
        return [Int8Kernel(codes, scales, joined(parts, bias), self.format.threshold)]

    def _read_scales(self, module: nn.Module, part: str, index: int) -> None:
        cut = self.cut(part, index)
        beside = self.beside.get((part, index), {})
        layout = beside.get(LAYOUT)
        if layout is not None and (layout.numel() != 1 or int(layout) != _ROW_MAJOR):
            raise WeightError(
                f"{cut.name}.{LAYOUT} is {layout.tolist()}, and bitsandbytes reads row-major weights (0) only",
                hint="save the checkpoint again with bitsandbytes 0.45 or newer",
            )
        given = beside.get(SCALES)
        if given is None:
            raise WeightError(
                f"{cut.name}.{SCALES} is missing, and {cut.name}.weight needs it", hint="download the checkpoint again"
            )
        if not given.dtype.is_floating_point or given.numel() != cut.full_rows or not bool(given.isfinite().all()):
            raise WeightError(
                f"{cut.name}.{SCALES}: {given.dtype} of shape {list(given.shape)}, expected {cut.full_rows} finite "
                "scales",
                hint="download the checkpoint again",
            )
        scales = self._rows(module, "scale", index, [part])
        scales[cut.kept_rows :].zero_()
        own = given.reshape(-1).narrow(0, min(cut.first_row, cut.full_rows), cut.kept_rows)
        scales[: cut.kept_rows].copy_(own)

    def drop(self, module: nn.Module) -> None:
        delattr(module, f"{self.prefix}int8")
        delattr(module, f"{self.prefix}scale")
