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
    """Tensors in one: bytes [B] of uint8. parts: (first byte, dtype, shape) of each."""

    bytes: torch.Tensor
    parts: tuple[tuple[int, torch.dtype, torch.Size], ...]

    def unpack(self, copy: torch.Tensor) -> list[torch.Tensor]:
        """Views of `copy`, a tensor like `bytes` on any device."""
        return [
            copy[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for start, dtype, shape in self.parts
        ]


def pack(tensors: Sequence[torch.Tensor]) -> Packed:
    """Device work only. Wider types first, so that all start where their type may."""
    order = sorted(range(len(tensors)), key=lambda index: -tensors[index].element_size())
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
class _Places:
    """Where the arrays of one parcel stand. size: bytes in all. host: (dtype, first element, end) of each. device: for
    each dtype, the lengths of the pieces that a buffer of it falls into, and which piece is which array."""

    size: int
    host: tuple[tuple[np.dtype[Any], int, int], ...]
    device: tuple[tuple[torch.dtype, tuple[int, ...], tuple[tuple[int, int], ...]], ...]


class Packing:
    """Arrays of these dtypes, again and again in different lengths, which travel together. Each begins on a multiple
    of ALIGNMENT, as `starts_of` says."""

    def __init__(self, *dtypes: np.dtype[Any] | type) -> None:
        self.dtypes = tuple(np.dtype(dtype) for dtype in dtypes)
        self._known: dict[tuple[int, ...], _Places] = {}

    def places(self, lengths: tuple[int, ...]) -> _Places:
        """Of arrays with so many elements each."""
        places = self._known.get(lengths)
        if places is None:
            if len(self._known) >= _KEPT_PLACES:
                self._known.clear()
            places = self._known[lengths] = self._places(lengths)
        return places

    def _places(self, lengths: tuple[int, ...]) -> _Places:
        sizes = [length * dtype.itemsize for length, dtype in zip(lengths, self.dtypes, strict=True)]
        starts, size = starts_of(sizes)
        host = []
        for start, length, dtype in zip(starts, lengths, self.dtypes, strict=True):
            first = start // dtype.itemsize
            host.append((dtype, first, first + length))
        device = []
        for kind in dict.fromkeys(self.dtypes):
            pieces, found, end = list[int](), list[tuple[int, int]](), 0
            for index, (dtype, first, last) in enumerate(host):
                if dtype == kind:
                    pieces.append(first - end)
                    found.append((len(pieces), index))
                    pieces.append(last - first)
                    end = last
            pieces.append(size // kind.itemsize - end)
            device.append((_torch_dtype(kind), tuple(pieces), tuple(found)))
        return _Places(size, tuple(host), tuple(device))


class Parcel:
    """Arrays on their way to the device. host: 1-d arrays to be filled, rubbish at first; then `send` them."""

    __slots__ = ("_buffer", "_places", "_staged", "_transfer", "host")

    def __init__(self, transfer: Transfer, places: _Places, buffer: torch.Tensor | None) -> None:
        self._transfer, self._places, self._buffer = transfer, places, buffer
        if not transfer.direct:
            self._staged = transfer.copies.staging(places.size)
        elif buffer is None:
            self._staged = torch.empty(places.size, dtype=torch.uint8)
        else:
            self._staged = buffer[: places.size]
        view = self._staged.numpy()
        views = {dtype: view.view(dtype) for dtype in {dtype for dtype, _, _ in places.host}}
        self.host = [views[dtype][first:last] for dtype, first, last in places.host]

    def send(self) -> list[torch.Tensor]:
        """1-d tensors on the device with what is in `host`, in order. Once."""
        transfer, staged = self._transfer, self._staged
        if transfer.direct:
            device = staged
        elif self._buffer is None:
            device = transfer.copies.to_device(staged, transfer.device)
        else:
            device = self._buffer[: self._places.size]
            transfer.copies.to_buffer(staged, device)
        tensors = [device] * len(self.host)
        for dtype, pieces, found in self._places.device:
            parts = device.view(dtype).split_with_sizes(pieces)
            for piece, index in found:
                tensors[index] = parts[piece]
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

    def upload(self, *arrays: npt.NDArray[Any]) -> list[torch.Tensor]:
        """Tensors on the device with the arrays' shapes, dtypes and values, in order."""
        if self.direct:
            return [torch.from_numpy(_plain(array)) for array in arrays]
        starts, size = starts_of(array.nbytes for array in arrays)
        staged = self.copies.staging(size)
        _write(staged, arrays, starts)
        return _views(self.copies.to_device(staged, self.device), arrays, starts)

    def parcel(self, packing: Packing, lengths: tuple[int, ...], buffer: torch.Tensor | None = None) -> Parcel:
        """Room for arrays of `lengths`, which are written where they travel from. buffer [B] uint8: memory on the
        device that they travel into, from its beginning; else that is new memory."""
        return Parcel(self, packing.places(lengths), buffer)

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


def _write(buffer: torch.Tensor, arrays: Sequence[npt.NDArray[Any]], starts: Sequence[int]) -> None:
    view = buffer.numpy()
    for array, start in zip(arrays, starts, strict=True):
        view[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _views(buffer: torch.Tensor, arrays: Sequence[npt.NDArray[Any]], starts: Sequence[int]) -> list[torch.Tensor]:
    return [
        buffer[start : start + array.nbytes].view(_torch_dtype(array.dtype)).view(array.shape)
        for array, start in zip(arrays, starts, strict=True)
    ]


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`array` itself if a tensor can be made of it, else a copy (torch wants writable, non-negative strides)."""
    return array if array.flags.c_contiguous and array.flags.writeable else array.copy()


@cache
def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
