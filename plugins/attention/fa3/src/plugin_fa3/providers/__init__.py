"""Builds of FlashAttention-3, one file each, and the one call shape that they are used by.

What lives here: finding, loading and calling a library. What does not: plans, pages, anything of a step."""
