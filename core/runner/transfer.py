"""Small arrays from host to device and results back. On the CPU neither copies anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

ALIGNMENT = 16  # bytes; a view of the packed buffer as any dtype must start on a multiple of its item size
_KEPT_PLACES = 256
_PACKED_BYTES = 1 << 20  # results up to this size together travel in one copy; a larger one is not copied twice


class Copies(Protocol):
    """What of a HardwareBackend copies between host and device; documented there."""

    def staging(self, num_bytes: int) -> torch.Tensor: ...

    def to_device(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor: ...

    def to_buffer(self, staged: torch.Tensor, target: torch.Tensor) -> None: ...

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor: ...


class _PlainCopies:
    """Blocking copies from pageable memory, for a device without a backend."""

    def staging(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def to_device(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor:
        return staged.to(device)

    def to_buffer(self, staged: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(staged)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


@dataclass(frozen=True, slots=True)
class Packed:
    """Tensors in one, without gaps: bytes [B] of uint8. parts: (first byte, dtype, shape) of each."""

    bytes: torch.Tensor
    parts: tuple[tuple[int, torch.dtype, torch.Size], ...]

    def unpack(self, copy: torch.Tensor) -> list[torch.Tensor]:
        """Views of `copy`, a tensor like `bytes` on any device."""
        sizes = [shape.numel() * dtype.itemsize for _, dtype, shape in self.parts]
        order = sorted(range(len(sizes)), key=lambda index: (self.parts[index][0], sizes[index]))
        pieces = copy.split_with_sizes([sizes[index] for index in order])
        views = [copy] * len(order)
        for index, piece in zip(order, pieces, strict=True):
            _, dtype, shape = self.parts[index]
            typed = piece.view(dtype)
            views[index] = typed if len(shape) == 1 else typed.view(shape)
        return views


def pack(tensors: Sequence[torch.Tensor]) -> Packed:
    """Device work only. Wider types first, so that all start where their type may."""
    order = sorted(range(len(tensors)), key=lambda index: -tensors[index].itemsize)
    starts, size = [0] * len(tensors), 0
    for index in order:
        starts[index] = size
        size += tensors[index].nbytes
    whole = torch.cat([_bytes_of(tensors[index]) for index in order])
    return Packed(whole, tuple((start, t.dtype, t.shape) for start, t in zip(starts, tensors, strict=True)))


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor if tensor.dim() == 1 else tensor.reshape(-1)
    if flat.stride(0) != 1:  # that of less than two elements may be anything
        flat = flat.as_strided(flat.shape, (1,)) if flat.shape[0] < 2 else flat.contiguous()
    return flat.view(torch.uint8)


@dataclass(frozen=True, slots=True)
class Places:
    """Where arrays stand that travel together. size: bytes in all. host: (dtype, first element, end) of each. device:
    for each dtype, the lengths of the pieces that a buffer of it falls into, and which piece is which array."""

    size: int
    host: tuple[tuple[np.dtype[Any], int, int], ...]
    device: tuple[tuple[torch.dtype, tuple[int, ...], tuple[tuple[int, int], ...]], ...]

    @classmethod
    def of(cls, arrays: Sequence[npt.NDArray[Any]]) -> Places:
        """One after the other, as `starts_of` says."""
        starts, size = starts_of(array.nbytes for array in arrays)
        host = []
        for array, start in zip(arrays, starts, strict=True):
            first = start // array.itemsize
            host.append((array.dtype, first, first + array.size))
        device = []
        for kind in dict.fromkeys(array.dtype for array in arrays):
            pieces, found, end = list[int](), list[tuple[int, int]](), 0
            for index, (dtype, first, last) in enumerate(host):
                if dtype == kind:
                    if first > end:
                        pieces.append(first - end)
                    found.append((len(pieces), index))
                    pieces.append(last - first)
                    end = last
            pieces.append(size // kind.itemsize - end)
            device.append((_torch_dtype(kind), tuple(pieces), tuple(found)))
        return cls(size, tuple(host), tuple(device))

    def write(self, buffer: npt.NDArray[np.uint8], arrays: Sequence[npt.NDArray[Any]]) -> None:
        """buffer [size], on the host."""
        views = {dtype: buffer.view(dtype) for dtype in {dtype for dtype, _, _ in self.host}}
        for array, (dtype, first, last) in zip(arrays, self.host, strict=True):
            views[dtype][first:last] = array if array.ndim == 1 else array.reshape(-1)

    def read(self, buffer: torch.Tensor, arrays: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
        """Views of buffer [size] uint8, on any device, with the shapes of the arrays."""
        tensors = [buffer] * len(arrays)
        for dtype, pieces, found in self.device:
            parts = buffer.view(dtype).split_with_sizes(pieces)  # many times cheaper than slices
            for piece, index in found:
                shape = arrays[index].shape
                tensors[index] = parts[piece] if len(shape) == 1 else parts[piece].view(shape)
        return tensors


class Transfer:
    """Uploads and downloads of one device.

    direct: whether host memory is device memory, so that nothing needs copying; None: whether `device` is the CPU.
    An array that was uploaded must not be written afterwards: on the CPU the tensor is the array.

    Otherwise all arrays of one call travel in one packed buffer and one copy, made by `copies`.
    """

    def __init__(self, device: torch.device, copies: Copies | None = None, *, direct: bool | None = None) -> None:
        self.device = device
        self.direct = device.type == "cpu" if direct is None else direct
        self.copies = copies or _PlainCopies()
        self._places: dict[tuple[int, ...], Places] = {}

    def upload(self, *arrays: npt.NDArray[Any]) -> list[torch.Tensor]:
        """Tensors on the device with the arrays' shapes, dtypes and values, in order."""
        if self.direct:
            return [torch.from_numpy(_plain(array)) for array in arrays]
        places = self.places(arrays)
        staged = self.copies.staging(places.size)
        places.write(staged.numpy(), arrays)
        return places.read(self.copies.to_device(staged, self.device), arrays)

    def upload_into(self, buffer: torch.Tensor, *arrays: npt.NDArray[Any]) -> list[torch.Tensor]:
        """The same in memory that is there already: buffer [B] uint8 on the device, where they begin as `starts_of`
        says. On the CPU too they are copied."""
        places = self.places(arrays)
        target = buffer[: places.size]
        if self.direct:
            places.write(target.numpy(), arrays)
        else:
            staged = self.copies.staging(places.size)
            places.write(staged.numpy(), arrays)
            self.copies.to_buffer(staged, target)
        return places.read(target, arrays)

    def places(self, arrays: Sequence[npt.NDArray[Any]]) -> Places:
        """Where these arrays stand when they travel together. Kept: most steps upload what the step before did, with
        other values in it."""
        key = tuple([fact for array in arrays for fact in (array.dtype.num, array.size)])
        places = self._places.get(key)
        if places is None:
            if len(self._places) >= _KEPT_PLACES:
                self._places.clear()
            places = self._places[key] = Places.of(arrays)
        return places

    def download(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Host tensors of the same values. If not direct, the copies may only be queued: they are to be read after an
        event that was recorded later on the same stream."""
        if self.direct:
            return list(tensors)
        if len(tensors) > 1 and sum(tensor.nbytes for tensor in tensors) <= _PACKED_BYTES:
            return self.download_packed(pack(tensors))
        return [self.copies.to_host(tensor) for tensor in tensors]

    def download_packed(self, packed: Packed) -> list[torch.Tensor]:
        """`download` of tensors that are packed already. What is packed may be overwritten by a later step: on the CPU,
        where nothing waits, the result is to be read before that."""
        return packed.unpack(packed.bytes if self.direct else self.copies.to_host(packed.bytes))


def starts_of(num_bytes: Iterable[int]) -> tuple[list[int], int]:
    """Where arrays of these sizes begin in a packed buffer, and its size."""
    starts, size = [], 0
    for own in num_bytes:
        starts.append(size)
        size += -(-own // ALIGNMENT) * ALIGNMENT
    return starts, size


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`array` itself if a tensor can be made of it, else a copy (torch wants writable, non-negative strides)."""
    return array if array.flags.c_contiguous and array.flags.writeable else array.copy()


@cache
def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
