"""NoHostReads: fails where a tensor's value is read on the host, which on a device means waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result, or its shape, depends on values: every device has to finish its work before they return.
_READS = {
    "_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique_consecutive", "unique_dim",
    "_unique", "_unique2", "repeat_interleave",
}  # fmt: skip


class NoHostReads(TorchDispatchMode):
    """While active, such operations raise AssertionError, on the CPU too, where they cost nothing. Reading a CPU
    tensor through numpy goes unseen. device: the one that computes; tensors elsewhere may be looked at. None: all
    tensors count."""

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        reads = name in _READS and func is not torch.ops.aten.repeat_interleave.self_int  # by a number of the host's
        assert not reads or not self._on_device(args), f"{name} waits for a value from the device"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [index for index in args[1] if isinstance(index, torch.Tensor) and index.dtype == torch.bool]
            assert not masks or not self._on_device(args), f"{name} with a mask waits for the number of its elements"
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            target = args[0].device if name == "copy_" else (kwargs or {}).get("device")
            moves = target is not None and torch.device(target).type == "cpu" and source.device.type != "cpu"
            assert not moves, f"{name} brings a tensor to the host"
        call: Callable[..., Any] = func
        return call(*args, **(kwargs or {}))

    def _on_device(self, args: tuple[Any, ...]) -> bool:
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        return self._device is None or any(tensor.device.type == self._device.type for tensor in tensors)
