"""TenantShares: who of several tenants is served next, by counters of tokens that each has been served.

After Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), virtual token counters: the tenant with
the smallest counter goes first; what it is served is added, divided by its weight; a tenant that comes back after it
had nothing waiting is lifted to those that wait now, so that nobody saves up while idle. Two tenants that always have
requests waiting then differ by a bound that does not grow with time: what one batch can be served.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]

PROMPT_COST = 1.0  # of a prompt token that was computed; one from the prefix cache costs nothing
OUTPUT_COST = 2.0  # of a generated token, which takes a step of its own
KEPT_TENANTS = 1024  # beyond so many, tenants that would be lifted anyway are forgotten


class TenantShares:
    """Counters by tenant. With one tenant there is nobody to be fair to, and nothing is counted.

    A tenant has an index while it is known; `RequestTable.tenant` holds it for running requests, so that a step's
    tokens are charged in one vector operation.
    """

    def __init__(self, kept: int = KEPT_TENANTS) -> None:
        self._index: dict[str, int] = {}
        self._free: list[int] = []
        self._kept = kept
        self.served = np.zeros(4, np.float64)
        self._per_token = np.zeros(4, np.float64)  # 1 / weight
        self._live = [0] * 4
        self._waiting = [0] * 4
        self._num_waiting = 0
        self._last_left = 0.0

    def __len__(self) -> int:
        return len(self._index)

    def index(self, tenant: str) -> int:
        """Its place in the arrays. It must have a live request."""
        return self._index[tenant]

    def counter(self, tenant: str) -> float:
        """What it has been served, by its weight."""
        return float(self.served[self._index[tenant]])

    def counters(self) -> dict[str, float]:
        """Of every tenant known."""
        return {tenant: float(self.served[index]) for tenant, index in self._index.items()}

    def arrived(self, tenant: str, weight: float) -> None:
        """A new request of `tenant`, not yet waiting."""
        index = self._index.get(tenant)
        if index is None:
            index = self._new(tenant)
        self._live[index] += 1
        self._per_token[index] = 1.0 / weight

    def waits(self, tenant: str) -> None:
        """A live request of `tenant` joins the queue: the first one of its tenant lifts the counter."""
        index = self._index[tenant]
        if not self._waiting[index]:
            self.served[index] = max(self.served[index], self._floor())
        self._waiting[index] += 1
        self._num_waiting += 1

    def leaves_queue(self, tenant: str) -> None:
        """One of those waiting is admitted, or ends."""
        index = self._index[tenant]
        self._waiting[index] -= 1
        self._num_waiting -= 1
        if not self._num_waiting:
            self._last_left = float(self.served[index])

    def ended(self, tenant: str) -> None:
        """A live request is over."""
        self._live[self._index[tenant]] -= 1

    def charge_prompt(self, tenant: str, num_tokens: int) -> None:
        """Prompt tokens that are going to be computed."""
        if len(self._index) > 1:
            index = self._index[tenant]
            self.served[index] += PROMPT_COST * num_tokens * self._per_token[index]

    def charge_outputs(self, indices: Int32) -> None:
        """One generated token for each of `indices` [n], which may repeat."""
        if len(self._index) > 1 and len(indices):
            tokens = np.bincount(indices, minlength=len(self.served))
            self.served += OUTPUT_COST * tokens * self._per_token

    def _floor(self) -> float:
        """What those that wait have been served at least, or had when the last of them left."""
        if not self._num_waiting:
            return self._last_left
        return min(float(self.served[index]) for index, waiting in enumerate(self._waiting) if waiting)

    def _new(self, tenant: str) -> int:
        if len(self._index) >= self._kept:
            self._forget()
        if self._free:
            index = self._free.pop()
        else:
            index = len(self._index)
            if index == len(self.served):
                self.served, self._per_token = (
                    np.concatenate([array, np.zeros_like(array)]) for array in (self.served, self._per_token)
                )
                self._live += [0] * index
                self._waiting += [0] * index
        self._index[tenant] = index
        self.served[index] = 0.0
        return index

    def _forget(self) -> None:
        """Drop idle tenants that would be lifted on their return: nothing is lost with them."""
        floor = self._floor()
        idle = [t for t, i in self._index.items() if not self._live[i] and self.served[i] <= floor]
        for tenant in idle:
            index = self._index.pop(tenant)
            self.served[index] = 0.0
            self._free.append(index)
