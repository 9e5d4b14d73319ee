"""Upstream's own build, of the folder `hopper` of flash-attention: package flash_attn_3, as its module
flash_attn_interface loads it. No attention sinks."""

from __future__ import annotations

from plugin_fa3.providers.library import LibraryProvider


class FlashAttnProvider(LibraryProvider):
    name = "flash_attn"
    install = "flash_attn_3"
    package = "flash_attn_3"
    library_pattern = "_C*.so"
    namespace = "flash_attn_3"
