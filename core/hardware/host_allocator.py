"""The C library's allocator, told to keep what is freed.

By default glibc takes every block over 128 KiB (growing to 32 MiB) fresh from the kernel and gives it back when it
is freed. A step allocates and frees the same activations again and again, and each fresh page costs a fault that
zeroes it. Measured with an 8M-parameter model on two cores: decode steps of 32 rows take 3 to 14 % less time.
"""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc refuses more
_KEEP_BYTES = 512 << 20  # freed memory at the top of the heap up to this stays with the process
_PAD_BYTES = 16 << 20


def keep_freed_memory() -> bool:
    """Process-wide and harmless to repeat. False where the C library is not glibc or refuses."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
        (_M_TRIM_THRESHOLD, _KEEP_BYTES),
        (_M_TOP_PAD, _PAD_BYTES),
    )
    accepted = [mallopt(name, value) == 1 for name, value in settings]  # all are tried
    return all(accepted)
