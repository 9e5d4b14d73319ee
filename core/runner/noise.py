"""The keys of the sampling noise: one for each (seed, position). What becomes of them: `core.ops.sampling`.

The row key is the splitmix64 finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014,
constants of Stafford's mix 13 variant as in Vigna's splitmix64.c).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN64 = np.uint64(0x9E3779B97F4A7C15)
_MIX64_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX64_B = np.uint64(0x94D049BB133111EB)


def row_keys(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Two key words for each row. seeds [R] uint64, positions [R]; returns [R, 2] int32."""
    with np.errstate(over="ignore"):
        keys = _mix64(_mix64(seeds + _GOLDEN64) + positions.astype(np.uint64) * _GOLDEN64)
    return keys.view(np.int32).reshape(-1, 2)


def _mix64(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX64_A
    z = (z ^ (z >> np.uint64(27))) * _MIX64_B
    return z ^ (z >> np.uint64(31))
