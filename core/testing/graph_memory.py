"""GraphMemory: where the results of recorded operations lie, on a CPU, by the rules of a device's graphs.

A block is given out again as soon as the last tensor in it is gone, to whatever is recorded next, of the same step or
of another size. Recordings know addresses only: they keep no memory alive.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ALIGNMENT = 64
_SEGMENT_BYTES = 1 << 20
_SPOILED = 0xFF  # not-a-number in every floating-point type, -1 in integers

Bytes = npt.NDArray[np.uint8]


class _Block(np.ndarray[Any, Any]):
    """Bytes that a tensor holds on to; its end is noticed."""


class GraphMemory:
    """Segments that only grow, and what of them is free."""

    def __init__(self) -> None:
        self._segments: list[Bytes] = []
        self._free: list[Bytes] = []

    @property
    def num_bytes(self) -> int:
        return sum(len(segment) for segment in self._segments)

    def adopt(self, made: torch.Tensor) -> torch.Tensor:
        """The same values, shape and strides, in a block."""
        if not made.numel():
            return made
        strides = made.stride() if _is_dense(made) else torch.empty(made.shape, device="meta").stride()
        block = self._take(made.numel() * made.element_size())
        held = block.view(_Block)
        weakref.finalize(held, self._free.append, block)
        raw: torch.Tensor = torch.from_numpy(held)
        return raw.view(made.dtype).as_strided(made.shape, strides).copy_(made)

    def holds(self, tensor: torch.Tensor) -> bool:
        at = tensor.untyped_storage().data_ptr()
        return any(begin <= at < begin + len(s) for s in self._segments for begin in (s.ctypes.data,))

    def spoil(self) -> None:
        """What stood in it is of no more use."""
        for segment in self._segments:
            segment.fill(_SPOILED)

    def _take(self, num_bytes: int) -> Bytes:
        """A free block [num_bytes], the smallest that is large enough."""
        size = -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        fitting = [at for at, block in enumerate(self._free) if len(block) >= num_bytes]
        if fitting:
            whole = self._free.pop(min(fitting, key=lambda at: len(self._free[at])))
        else:
            room = np.full(max(size, _SEGMENT_BYTES) + _ALIGNMENT, _SPOILED, np.uint8)
            first = -room.ctypes.data % _ALIGNMENT
            whole = room[first : first + max(size, _SEGMENT_BYTES)]
            self._segments.append(whole)
        if len(whole) > size:
            self._free.append(whole[size:])
        return whole[:num_bytes]


def unowned(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory without keeping it: what a recording knows of a tensor. Usable in and out of inference mode."""
    storage = tensor.untyped_storage()
    with torch.inference_mode(False):
        if not storage.nbytes():
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        raw = torch.frombuffer(
            (ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr()), dtype=torch.uint8
        )  # fmt: skip
        bare = torch.empty(0, dtype=tensor.dtype)
        return bare.set_(raw.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill a stretch of memory, in any order of the dimensions."""
    sizes = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    expected = 1
    for stride, size in sizes:
        if stride != expected:
            return False
        expected *= size
    return True
