"""A histogram that takes a whole array at once: at 256 streams a step gives 256 inter-token latencies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
LONG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0)


class BulkHistogram:
    """Counts per bucket and the sum. bounds: ascending upper bounds, inclusive; a last bucket takes the rest."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.array(bounds, np.float64)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self.sum = 0.0

    def observe(self, values: Sequence[float]) -> None:
        """Count all `values`."""
        array = np.asarray(values, np.float64)
        buckets = np.searchsorted(self._bounds, array, side="left")
        self._counts += np.bincount(buckets, minlength=len(self._counts))
        self.sum += float(array.sum())

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, cumulative count), the last bound "+Inf"."""
        bounds = [f"{bound:g}" for bound in self._bounds] + ["+Inf"]
        return list(zip(bounds, np.cumsum(self._counts).astype(float).tolist(), strict=True))
