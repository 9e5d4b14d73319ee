"""The loaded kernels with their signatures.

Functions hold no Python objects and release the interpreter lock while they run. Pointers are plain integers
(`Tensor.data_ptr()`); shapes are checked by the callers in `attention` and `ops`.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

from plugin_cpu_native.compiler import KernelsUnavailable, build

# Bytes of an element, which is also how the kernels tell types apart.
ELEMENT_BYTES = {torch.float32: 4, torch.bfloat16: 2}
_P, _I, _L, _F = c_void_p, c_int, c_int64, c_float


class Kernels:
    """Bound functions; their C definitions say what they do.

    linear_kind: 0 no packed products on this processor, 1 with the vector unit, 2 with the matrix unit.
    """

    def __init__(self, path: Path) -> None:
        try:
            # All symbols now, not at the first call: the OpenMP runtime's must be PyTorch's own.
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise KernelsUnavailable(
                f"{path} cannot be loaded ({error}); the kernels need the OpenMP runtime of GCC's or LLVM's kind "
                "that PyTorch brings on Linux"
            ) from error

        def bind(name: str, result: Any, *arguments: Any) -> Any:
            function = getattr(library, f"cpu_native_{name}")
            function.restype, function.argtypes = result, arguments
            return function

        self.norm = bind("norm", None, _P, _P, _P, _P, _P, _L, _L, _I, _L, _I, _I, _F)
        self.silu_and_mul = bind("silu_and_mul", None, _P, _P, _L, _L, _L, _I)
        self.norm_rope = bind("norm_rope", None, _P, _P, _P, _P, _P, _L, _L, _L, _I, _I, _I, _I, _I, _I, _F)
        self.plan_new = bind("plan_new", _P, _I, _I)
        self.plan_free = bind("plan_free", None, _P)
        self.plan = bind("plan", _I, _P, _P, _I, _I, _P, _P, _P, _P, _P, _I, _I, _I)
        self.attention = bind(
            "attention", _I, *([_P] * 9), _L, _L, _L, _I, _I, _I, _I, _I, _I, _F, _F,
        )  # fmt: skip
        self.linear_kind: int = bind("linear_kind", _I)()
        if self.linear_kind:
            self.pack = bind("pack", None, _P, _P, _L, _L)
            self.linear = bind("linear", None, _P, _P, _P, _P, _I, _L, _I, _I, _I)


@functools.cache
def kernels() -> Kernels:
    """This process's kernels, compiled and loaded at the first call. Raises KernelsUnavailable."""
    return Kernels(build())
