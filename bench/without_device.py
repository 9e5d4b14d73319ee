"""A stand-in for a GPU: Triton finds its kernel as ever, and the launch ends where the driver would be called.

Tensors lie on the CPU. What is left is the host's work, through Triton's own binder and launcher; nothing is computed.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime.jit import JITFunction

# Takes whatever it is given and is no Python call.
ENTRY: Any = "".format
TARGET = GPUTarget("cuda", 90, 32)


class Kernel:
    """What a kernel is compiled to. run: Triton's launcher for this signature."""

    def __init__(self, number: int, signature: dict[str, str], options: Any, key: Any, attributes: Any) -> None:
        self.function, self.packed_metadata = number, ()
        self.signature, self.key, self.attributes = signature, key, attributes
        self.metadata = options
        self.run = launcher(signature, bool(getattr(options, "launch_pdl", False)))

    def launch_metadata(self, *args: Any) -> None:
        return None


def launcher(signature: dict[str, str], pdl: bool) -> Any:
    """Triton's `CudaLauncher` with ENTRY for what it has compiled."""
    made = object.__new__(nvidia.CudaLauncher)
    described = [
        {"swizzle": 0, "elem_size": 2, "elem_type": 10, "block_size": [64, 64], "fp4_padded": False}
        for kind in signature.values()
        if kind.startswith("tensordesc")
    ] or None
    made.__dict__.update(
        num_ctas=1, global_scratch_size=0, global_scratch_align=1, profile_scratch_size=0, profile_scratch_align=1,
        launch_cooperative_grid=False, launch_pdl=pdl, gsan_enabled=False, arg_annotations=(), kernel_signature=b"",
        launch=nvidia.wrap_handle_tensordesc(ENTRY, signature, described),
    )  # fmt: skip
    return made


class _Driver:
    launcher_cls = nvidia.CudaLauncher
    utils = SimpleNamespace(fill_tma_descriptor=ENTRY, fill_tma_descriptor_tiled=ENTRY)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGET


def install() -> list[Kernel]:
    """For the rest of the process, before plugins are imported. Returns the kernels that are compiled, as they come."""
    made: list[Kernel] = []

    def compile_(
        self: Any, key: Any, signature: Any, device: int, constexprs: Any, options: Any, attrs: Any, warmup: bool
    ) -> Kernel:
        kernel = Kernel(len(made) + 1, signature, options, key, attrs)
        made.append(kernel)
        self.device_caches[device][0][key] = kernel
        return kernel

    triton.runtime.driver.set_active(_Driver())
    JITFunction._do_compile = compile_
    if not hasattr(torch._C, "_cuda_getCurrentRawStream"):
        torch._C._cuda_getCurrentRawStream = abs  # takes a number, gives a number
    from plugin_triton import dependent

    dependent.dependent = _always  # kernels are launched as on Hopper
    return made


def _always(device: torch.device) -> bool:
    return True
