"""Launching kernels with little work on the host.

Triton's own launch looks at every argument anew to find the compiled kernel, which takes about as long as a small
kernel runs. A `Launch` is one kernel with its constants for one set of argument types; what it was compiled to is found
once.
"""

from __future__ import annotations

from typing import Any

import torch

from plugin_triton.interpreter import INTERPRETED

FLOATS = (torch.bfloat16, torch.float16, torch.float32)  # what the kernels compute with
_ALIGNED = 15  # Triton compiles for pointers that 16 divides, and for others, apart


class Launch:
    """kernel: a `triton.jit` function whose constants come last. Arguments that are not constants are tensors, None,
    floats, or integers that the kernel lists in do_not_specialize; their types (and which are None) must be the same
    in every call, so whoever caches a Launch has them in its key.

    constants: values of the constants, in their order. options: num_warps, num_stages, ...
    """

    __slots__ = ("_compiled", "_keywords", "constants", "kernel")

    def __init__(self, kernel: Any, constants: tuple[Any, ...], **options: Any) -> None:
        self.kernel = kernel
        self.constants = constants
        if options.pop("pdl", False):
            options["launch_pdl"] = True
        options.setdefault("enable_fp_fusion", True)  # what Triton does unasked changes with its versions
        names = kernel.arg_names[-len(constants) :] if constants else []
        self._keywords = dict(zip(names, constants, strict=True)) | options
        self._compiled: dict[int, tuple[Any, Any, Any]] = {}  # by device

    def __call__(self, device: int, grid: tuple[int, int, int], *args: Any) -> None:
        """Start the kernel on the current stream of the current device, whose number is `device`."""
        found = self._compiled.get(device)
        if found is not None:
            bits = 0
            plain: list[Any] = []
            for value in args:
                if isinstance(value, torch.Tensor):
                    value = value.data_ptr()
                    bits |= value
                plain.append(value)
            if not bits & _ALIGNED:
                run, function, metadata = found
                stream = torch._C._cuda_getCurrentRawStream(device)
                run(*grid, stream, function, metadata, None, None, None, *plain, *self.constants)
                return
        compiled = self.kernel[grid](*args, **self._keywords)
        aligned = all(value.data_ptr() & _ALIGNED == 0 for value in args if isinstance(value, torch.Tensor))
        if aligned and not INTERPRETED.value:
            self._compiled[device] = (compiled.run, compiled.function, compiled.packed_metadata)


def empty_as(x: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor of the shape and type of x."""
    if x.is_contiguous():
        return torch.empty_like(x)  # a third of what `torch.empty` takes
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
