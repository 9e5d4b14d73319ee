"""A rank's share of a checkpoint matrix, and where 4-bit matrices may be cut."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from core.interfaces.errors import ConfigError

# Blocks run along the flattened matrix. One of 64 is two of 32 with the same scale, and so on, so that a cut need not
# fall between blocks; but no kernel takes smaller blocks than this.
FINEST_BLOCK = 32
_MOST_RANKS = 64


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows [first_row, first_row + rows) and columns [first_col, first_col + cols) of [full_rows, full_cols].

    name: the checkpoint's module, for errors. Rows past full_rows are padding of zeros (a vocabulary that does not
    divide by the number of ranks).
    """

    name: str
    full_rows: int
    full_cols: int
    first_row: int
    rows: int
    first_col: int
    cols: int

    @property
    def kept_rows(self) -> int:
        """Rows that the checkpoint has."""
        return max(0, min(self.rows, self.full_rows - self.first_row))

    @property
    def whole(self) -> bool:
        return (self.first_row, self.rows, self.first_col, self.cols) == (0, self.full_rows, 0, self.full_cols)

    @property
    def numel(self) -> int:
        return self.rows * self.cols

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's rows and columns of [full_rows, full_cols], without padding. A view."""
        return tensor.narrow(0, min(self.first_row, self.full_rows), self.kept_rows).narrow(
            1, self.first_col, self.cols
        )

    def finest(self, block_size: int) -> int:
        """The largest block size that divides `block_size`, and whose blocks this cut does not split."""
        if self.cols != self.full_cols:
            return math.gcd(block_size, self.full_cols, self.first_col, self.cols)
        start = min(self.first_row, self.full_rows) * self.full_cols
        end = start + self.kept_rows * self.full_cols
        size = math.gcd(block_size, start)
        return size if end == self.full_rows * self.full_cols else math.gcd(size, end)

    def check(self, block_size: int = FINEST_BLOCK) -> None:
        """Raise ConfigError if a 4-bit matrix that is quantized already cannot be cut like this."""
        if self.whole or not self.kept_rows or self.finest(block_size) >= FINEST_BLOCK:
            return
        by_columns = self.cols != self.full_cols
        ranks = self.full_cols // self.cols if by_columns else -(-self.full_rows // self.rows)
        share = f"{self.cols} of {self.full_cols} columns" if by_columns else f"{self.rows} of {self.full_rows} rows"
        raise ConfigError(
            f"{self.name} is stored in 4-bit blocks along its rows of {self.full_cols}; a rank with {share}, from "
            f"{self.first_col if by_columns else self.first_row} on, cuts through them at no multiple of "
            f"{FINEST_BLOCK} weights",
            field="engine.tensor_parallel_size",
            value=ranks,
            hint=f"tensor-parallel sizes that this layer allows: {self._allowed()}; or take the unquantized checkpoint "
            "with --quantization bitsandbytes, which is cut before it is quantized",
        )

    def _allowed(self) -> str:
        by_columns = self.cols != self.full_cols
        total = self.full_cols if by_columns else self.full_rows
        unit = 1 if by_columns else self.full_cols
        sizes = [
            size
            for size in range(1, _MOST_RANKS + 1)
            if total % size == 0 and (size == 1 or math.gcd(total // size * unit, self.full_cols if by_columns else 0)
                                      % FINEST_BLOCK == 0)
        ]  # fmt: skip
        return ", ".join(map(str, sizes))
