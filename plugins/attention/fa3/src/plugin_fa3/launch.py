"""Kernels with little work on the host where plugin-triton is installed; else Triton's own launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plugin_triton.launch import Launch
else:
    try:
        from plugin_triton.launch import Launch
    except ImportError:

        class Launch:
            """As plugin-triton's."""

            def __init__(self, kernel: Any, constants: tuple[Any, ...], **options: Any) -> None:
                if options.pop("pdl", False):
                    options["launch_pdl"] = True
                self.kernel, self.options = kernel, options
                self.constants = constants

            def start(self, device: int, x: int, y: int, z: int, *args: Any) -> None:
                """Start the kernel on the current stream of the current device."""
                self.kernel[(x, y, z)](*args, *self.constants, **self.options)


__all__ = ["Launch"]
