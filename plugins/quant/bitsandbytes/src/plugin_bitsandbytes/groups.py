"""Matrices that share their input, in one storage: filled tensor by tensor, then turned into kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from core.interfaces.errors import WeightError
from core.layers.module import check_tensor
from plugin_bitsandbytes.config import Format
from plugin_bitsandbytes.cut import Cut
from plugin_bitsandbytes.kernels import Kernel, PlainKernel, Stack


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how a group's numbers live."""

    dtype: torch.dtype
    device: torch.device
    compute: torch.dtype
    fused: bool


class Group(ABC):
    """`num` stacks (experts of a layer, or one) of the same parts, e.g. q, k and v.

    cuts: each part's share; a name with "{expert}" stands for every expert's module. skipped: parts left
    unquantized. Parts of one stack may be stored differently: a checkpoint's own tensors decide.
    """

    suffixes: tuple[str, ...] = ()

    def __init__(
        self, prefix: str, cuts: Mapping[str, Cut], num: int, format_: Format, skipped: Collection[str], place: Place
    ) -> None:
        self.prefix = prefix
        self.own = dict(cuts)
        self.cuts = self.own
        self.num = num
        self.format = format_
        self.skipped = frozenset(skipped)
        self.place = place
        self.plain: dict[tuple[str, int], torch.Tensor] = {}
        self.beside: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
        self.loaded: set[tuple[str, int]] = set()

    def cut(self, part: str, index: int) -> Cut:
        cut = self.cuts[part]
        return replace(cut, name=cut.name.replace("{expert}", str(index)))

    def stacked(self, name: str) -> None:
        """From now on tensors hold the rows of all parts, of the checkpoint's module `name`."""
        rows = sum(cut.full_rows for cut in self.own.values())
        cuts: dict[str, Cut] = {}
        start = 0
        for part, cut in self.own.items():
            cuts[part] = replace(cut, name=name, full_rows=rows, first_row=start + cut.first_row)
            start += cut.full_rows
        self.cuts = cuts  # at once: other threads load other tensors of this layer

    @abstractmethod
    def create(self, module: nn.Module) -> None:
        """Register empty storage."""

    @abstractmethod
    def store(self, module: nn.Module, cut: Cut, part: str, index: int, tensor: torch.Tensor) -> None:
        """Quantize a checkpoint's plain matrix, this rank's share of it."""

    @abstractmethod
    def take(self, module: nn.Module, cut: Cut, part: str, index: int, tensor: torch.Tensor) -> None:
        """Copy this rank's share of a checkpoint's quantized matrix. Raises WeightError."""

    @abstractmethod
    def kernels(
        self, module: nn.Module, index: int, parts: Sequence[str], bias: Mapping[str, torch.Tensor]
    ) -> list[Kernel]:
        """Of neighbouring parts that are all stored quantized."""

    @abstractmethod
    def drop(self, module: nn.Module) -> None:
        """Unregister the storage; kernels keep what they need."""

    def load(self, module: nn.Module, suffix: str, part: str, index: int, tensor: torch.Tensor) -> None:
        """Take one checkpoint tensor, `suffix` of "weight" or one of `suffixes`. Raises WeightError."""
        if part not in self.cuts:
            raise WeightError(f"there is no part {part!r}")
        key = (part, index)
        if suffix != "weight":
            if suffix not in self.suffixes:
                raise WeightError(f"{self.cut(part, index).name} has no {suffix}")
            # A copy: what the loader hands out may be a window into a file.
            self.beside.setdefault(key, {})[suffix] = tensor.clone()
            return
        cut = self.cut(part, index)
        plain = tuple(tensor.shape) == (cut.full_rows, cut.full_cols) and tensor.dtype.is_floating_point
        if self.format.prequantized:
            if plain:
                self.keep(cut, part, index, tensor)
            else:
                self.take(module, cut, part, index, tensor)
        else:
            check_tensor(tensor, (cut.full_rows, cut.full_cols))
            if part in self.skipped:
                self.keep(cut, part, index, tensor)
            else:
                self.store(module, cut, part, index, tensor)
        self.loaded.add(key)

    def keep(self, cut: Cut, part: str, index: int, tensor: torch.Tensor) -> None:
        """Store a plain matrix as it is."""
        own = torch.zeros(cut.rows, cut.cols, dtype=self.place.dtype, device=self.place.device)
        own[: cut.kept_rows].copy_(cut.take(tensor))
        self.plain[part, index] = own

    def all_plain(self) -> bool:
        return len(self.plain) == len(self.cuts) * self.num

    def finish(self, module: Any, bias: Mapping[str, torch.Tensor] | None = None) -> list[Stack]:
        """The stacks, when every tensor is here. bias: of each part, or None. Raises WeightError."""
        for (part, index), tensors in self.beside.items():
            if (part, index) in self.plain:
                name = self.cut(part, index).name
                raise WeightError(f"{name}.{sorted(tensors)[0]} is given, but {name}.weight is not quantized")
        stacks = [Stack(self._kernels(module, index, bias or {})) for index in range(self.num)]
        self.drop(module)
        self.plain.clear()
        self.beside.clear()
        return stacks

    def _kernels(self, module: Any, index: int, bias: Mapping[str, torch.Tensor]) -> list[Kernel]:
        found: list[Kernel] = []
        for plain, parts in self._runs(index):
            if plain:
                weight = torch.cat([self.plain[part, index] for part in parts])
                found.append(PlainKernel(weight, joined(parts, bias), module.ops))
            else:
                found += self.kernels(module, index, parts, bias)
        return found

    def _runs(self, index: int) -> list[tuple[bool, list[str]]]:
        """Neighbouring parts that are all plain, or all quantized."""
        runs: list[tuple[bool, list[str]]] = []
        for part in self.cuts:
            plain = (part, index) in self.plain or (part in self.skipped and not self.format.prequantized)
            if plain and (part, index) not in self.plain:  # random weights: nothing was loaded
                cut = self.cuts[part]
                shape = (cut.rows, cut.cols)
                self.plain[part, index] = torch.zeros(shape, dtype=self.place.dtype, device=self.place.device)
            if runs and runs[-1][0] == plain:
                runs[-1][1].append(part)
            else:
                runs.append((plain, [part]))
        return runs


def joined(parts: Sequence[str], bias: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The parts' biases in a row, or None if there are none."""
    return torch.cat([bias[part] for part in parts]) if bias else None


def parameter(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
