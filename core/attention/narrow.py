"""A cache of a smaller type than is computed in: narrowed when it is written, widened when it is read."""

from __future__ import annotations

from typing import Protocol

import torch


class Rows(Protocol):
    """What attention reads of a cache [S, F]: a tensor is one."""

    def narrow(self, dim: int, start: int, length: int, /) -> torch.Tensor: ...

    def index_select(self, dim: int, index: torch.Tensor, /) -> torch.Tensor: ...


class NarrowRows:
    """buffer [S, F]; its numbers times `scale` are what was stored. Rows come out in `dtype`."""

    def __init__(self, buffer: torch.Tensor, scale: float, dtype: torch.dtype) -> None:
        self._buffer, self._scale, self._dtype = buffer, scale, dtype

    def narrow(self, dim: int, start: int, length: int, /) -> torch.Tensor:
        return self._widened(self._buffer.narrow(dim, start, length))

    def index_select(self, dim: int, index: torch.Tensor, /) -> torch.Tensor:
        # As bytes: not every operation knows the eight-bit types.
        return self._widened(self._buffer.view(torch.uint8).index_select(dim, index).view(self._buffer.dtype))

    def store(self, index: torch.Tensor, rows: torch.Tensor) -> None:
        """rows [T, F] to rows `index`; numbers beyond the type's range become its largest."""
        limit = torch.finfo(self._buffer.dtype).max
        small = (rows.to(torch.float32) / self._scale).clamp(-limit, limit).to(self._buffer.dtype)
        self._buffer.view(torch.uint8).index_copy_(0, index, small.view(torch.uint8))

    def _widened(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows.to(torch.float32) * self._scale).to(self._dtype)
