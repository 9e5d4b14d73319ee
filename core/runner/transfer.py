"""Small arrays from host to device and results back. On the CPU neither copies anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

_ALIGNMENT = 16  # bytes; a view of the packed buffer as any dtype must start on a multiple of its item size


class Copies(Protocol):
    """What of a HardwareBackend copies between host and device; documented there."""

    def staging(self, num_bytes: int) -> torch.Tensor: ...

    def to_device(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor: ...

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor: ...


class _PlainCopies:
    """Blocking copies from pageable memory, for a device without a backend."""

    def staging(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def to_device(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor:
        return staged.to(device)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


class Transfer:
    """Uploads and downloads of one device.

    direct: whether host memory is device memory, so that nothing needs copying; None: whether `device` is the CPU.
    An array that was uploaded must not be written afterwards: on the CPU the tensor is the array.

    Otherwise all arrays of one call travel in one packed buffer and one copy, made by `copies`.
    """

    def __init__(self, device: torch.device, copies: Copies | None = None, *, direct: bool | None = None) -> None:
        self.device = device
        self.direct = device.type == "cpu" if direct is None else direct
        self._copies = copies or _PlainCopies()

    def upload(self, *arrays: npt.NDArray[Any]) -> list[torch.Tensor]:
        """Tensors on the device with the arrays' shapes, dtypes and values, in order."""
        if self.direct:
            return [torch.from_numpy(_plain(array)) for array in arrays]
        offsets, size = [], 0
        for array in arrays:
            offsets.append(size)
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        staged = self._copies.staging(size)
        view = staged.numpy()
        for array, offset in zip(arrays, offsets, strict=True):
            view[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        packed = self._copies.to_device(staged, self.device)
        return [
            packed[offset : offset + array.nbytes].view(_torch_dtype(array)).view(array.shape)
            for array, offset in zip(arrays, offsets, strict=True)
        ]

    def download(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Host tensors of the same values. If not direct, the copies may only be queued: they are to be read after an
        event that was recorded later on the same stream."""
        return list(tensors) if self.direct else [self._copies.to_host(tensor) for tensor in tensors]


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`array` itself if a tensor can be made of it, else a copy (torch wants writable, non-negative strides)."""
    return array if array.flags.c_contiguous and array.flags.writeable else array.copy()


def _torch_dtype(array: npt.NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
