"""The build inside vllm. Signatures read from 0.25.1 (CUDA 13)."""

from __future__ import annotations

from plugin_fa3.providers.library import LibraryProvider


class VllmProvider(LibraryProvider):
    name = "vllm"
    install = "vllm"
    package = "vllm"
    library_pattern = "vllm_flash_attn/_vllm_fa3_C*.so"
    namespace = "_vllm_fa3_C"
    sinks_argument = "s_aux"
