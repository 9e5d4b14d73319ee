"""The build in sglang-kernel. Signatures read from 0.4.5 (CUDA 13)."""

from __future__ import annotations

from plugin_fa3.providers.library import LibraryProvider


class SglangProvider(LibraryProvider):
    name = "sglang"
    install = "sglang-kernel"
    package = "sgl_kernel"
    library_pattern = "flash_ops*.so"
    namespace = "sgl_kernel"
    sinks_argument = "sinks"
