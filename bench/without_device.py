"""A stand-in for a GPU: Triton finds its kernel as ever, and the launch ends where the driver would be called.

Tensors lie on the CPU. What is left is the host's work, through Triton's own binder and launcher; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.knobs import HookChain
from triton.runtime.jit import JITFunction

# Takes whatever it is given and is no Python call.
ENTRY: Any = "".format
TARGET = GPUTarget("cuda", 90, 32)
NUMBER = 77  # of the device: no other one's, since Triton keeps kernels by it


class Kernel:
    """What a kernel is compiled to. run: Triton's launcher for this signature."""

    def __init__(self, number: int, signature: dict[str, str], options: Any, entry: Any) -> None:
        self.function, self.packed_metadata = number, ()
        self.run = launcher(signature, bool(options.launch_pdl), entry)

    def launch_metadata(self, *args: Any) -> None:
        return None


def launcher(signature: dict[str, str], pdl: bool, entry: Any) -> Any:
    """Triton's `CudaLauncher` with `entry` for what it has compiled."""
    made = object.__new__(nvidia.CudaLauncher)
    described = [
        {"swizzle": 0, "elem_size": 2, "elem_type": 10, "block_size": [64, 64], "fp4_padded": False}
        for kind in signature.values()
        if kind.startswith("tensordesc")
    ] or None
    made.__dict__.update(
        num_ctas=1, global_scratch_size=0, global_scratch_align=1, profile_scratch_size=0, profile_scratch_align=1,
        launch_cooperative_grid=False, launch_pdl=pdl, gsan_enabled=False, arg_annotations=(), kernel_signature=b"",
        launch=nvidia.wrap_handle_tensordesc(entry, signature, described),
    )  # fmt: skip
    return made


def _described(*args: Any) -> tuple[str, Any]:
    """In place of what the driver makes of a tensor's address, tile and sizes."""
    return ("descriptor", repr(args))


class _Driver:
    launcher_cls = nvidia.CudaLauncher
    utils = SimpleNamespace(fill_tma_descriptor=_described, fill_tma_descriptor_tiled=_described)

    def get_current_device(self) -> int:
        return NUMBER

    def get_current_stream(self, device: int) -> int:
        return NUMBER

    def get_current_target(self) -> GPUTarget:
        return TARGET


@contextmanager
def installed(entry: Any = ENTRY) -> Iterator[None]:
    """Plugins that are imported meanwhile launch as on Hopper. entry: called in place of compiled launchers."""
    compiled: list[Any] = []

    def compile_(
        self: Any, key: Any, signature: Any, device: int, constexprs: Any, options: Any, attrs: Any, warmup: bool
    ) -> Kernel:
        compiled.append(self)
        kernel = self.device_caches[device][0][key] = Kernel(len(compiled), signature, options, entry)
        return kernel

    import plugin_triton.dependent as dependent

    config = triton.runtime.driver
    with (
        mock.patch.object(config, "_active", _Driver()),
        mock.patch.object(JITFunction, "_do_compile", compile_),
        # A number gives a number: the stream's.
        mock.patch.object(torch._C, "_cuda_getCurrentRawStream", abs, create=True),
        mock.patch.object(dependent, "dependent", always),
    ):
        yield
    for function in compiled:
        function.device_caches.pop(NUMBER, None)


def always(device: torch.device) -> bool:
    return True


class Checked:
    """Compares launches past Triton's look-up with Triton's own, while `installed(checked.entry)`: the same compiled
    kernel, started with the same arguments. compared: how many so far."""

    def __init__(self) -> None:
        self.compared = 0
        self._started: list[tuple[Any, ...]] = []

    def entry(self, *args: Any) -> None:
        self._started.append(tuple(_plain(args)))

    @contextmanager
    def comparing(self) -> Iterator[None]:
        from plugin_triton.launch import Launch

        made = Launch._made

        def checked(launch: Any, *about: Any) -> Callable[..., None] | None:
            start = made(launch, *about)
            return None if start is None else lambda *args: self._compare(launch, start, *args)

        with mock.patch.object(Launch, "_made", checked):
            yield

    def _compare(
        self, launch: Any, start: Callable[..., None], device: int, x: int, y: int, z: int, *args: Any
    ) -> None:
        start(device, x, y, z, *args)
        quick = self._started[-1]
        launch.kernel[(x, y, z)](*args, **launch._keywords)
        # The stream's number is of the device that the caller names.
        assert _without_stream(quick) == _without_stream(self._started[-1]), (launch.kernel, quick, self._started[-1])
        del self._started[:-1]
        self.compared += 1


def _plain(args: Any) -> Iterator[Any]:
    for arg in args:
        if isinstance(arg, (tuple, list)) and not (arg and arg[0] == "descriptor"):
            yield from _plain(arg)
        elif isinstance(arg, HookChain):  # of profilers, who are not called past Triton's look-up
            yield None
        else:
            yield arg.data_ptr() if isinstance(arg, torch.Tensor) else arg


def _without_stream(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*args[:3], *args[4:])
