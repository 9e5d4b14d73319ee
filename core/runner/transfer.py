"""Small arrays from host to device and results back. On the CPU neither copies anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ALIGNMENT = 16  # bytes; a view of the packed buffer as any dtype must start on a multiple of its item size


class Transfer:
    """Uploads and downloads of one device.

    direct: whether host memory is device memory, so that nothing needs copying; None: whether `device` is the CPU.
    An array that was uploaded must not be written afterwards: on the CPU the tensor is the array.

    Otherwise all arrays of one call travel in one packed buffer and one copy. Pinned buffers are taken anew for
    each call: torch keeps them in a caching allocator that hands a buffer out again only after the copies queued
    from it have finished, which is just the fence that a ring of our own would need.
    """

    def __init__(self, device: torch.device, *, pinned: bool = False, direct: bool | None = None) -> None:
        self.device = device
        self.direct = device.type == "cpu" if direct is None else direct
        self._pinned = pinned

    def upload(self, *arrays: npt.NDArray[Any]) -> list[torch.Tensor]:
        """Tensors on the device with the arrays' shapes, dtypes and values, in order."""
        if self.direct:
            return [torch.from_numpy(_plain(array)) for array in arrays]
        offsets, size = [], 0
        for array in arrays:
            offsets.append(size)
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        staging = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        view = staging.numpy()
        for array, offset in zip(arrays, offsets, strict=True):
            view[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        packed = staging.to(self.device, non_blocking=self._pinned)
        return [
            packed[offset : offset + array.nbytes].view(_torch_dtype(array)).view(array.shape)
            for array, offset in zip(arrays, offsets, strict=True)
        ]

    def download(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Host tensors of the same values. If not direct, with pinned memory the copies are only queued: they may be
        read after an event that was recorded later on the same stream."""
        if self.direct:
            return list(tensors)
        host = []
        for tensor in tensors:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pinned)
            host.append(buffer.copy_(tensor, non_blocking=self._pinned))
        return host


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`array` itself if a tensor can be made of it, else a copy (torch wants writable, non-negative strides)."""
    return array if array.flags.c_contiguous and array.flags.writeable else array.copy()


def _torch_dtype(array: npt.NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
