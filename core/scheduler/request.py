"""Request: one sample of one prompt, as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from core.interfaces.params import PoolingParams, SamplingParams
from core.interfaces.prefix_cache import CacheKey
from core.memory.lease import Lease

Int32 = npt.NDArray[np.int32]


@dataclass(slots=True, eq=False)
class Request:
    """id: unique while the request lives. tokens [n] int32: the prompt; after a preemption also what it had
    generated. seed: resolved. namespace: `Namespace.encode()`. priority: higher runs earlier.
    eos_token_ids: end the text unless `sampling.ignore_eos`. tenant, weight, timeout_s: see AddRequest.
    pooling: it wants a vector: it ends with the step that ends its prompt.

    The rest is the scheduler's. order: place in line. slot: -1 while waiting. cached_tokens: prompt tokens found in
    the prefix cache at first admission, -1 before it. bypasses: later requests admitted earlier. leader_id: the
    request whose prefill it has waited for. displaced: times that it gave way to a higher priority. protected: it
    gives way to none any more.
    """

    id: int
    tokens: Int32
    sampling: SamplingParams
    seed: int
    namespace: bytes = b""
    priority: int = 0
    arrival_s: float = 0.0
    eos_token_ids: tuple[int, ...] = ()
    tenant: str = ""
    weight: float = 1.0
    timeout_s: float | None = None
    pooling: PoolingParams | None = None
    num_prompt: int = field(init=False)
    max_len: int = field(init=False, default=0)
    order: int = field(init=False, default=-1)
    slot: int = field(init=False, default=-1)
    lease: Lease | None = field(init=False, default=None)
    cached_tokens: int = field(init=False, default=-1)
    preemptions: int = field(init=False, default=0)
    bypasses: int = field(init=False, default=0)
    leader_id: int | None = field(init=False, default=None)
    displaced: int = field(init=False, default=0)
    protected: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.tokens = np.ascontiguousarray(self.tokens, np.int32)
        self.num_prompt = len(self.tokens)

    @property
    def uses_cache(self) -> bool:
        """Whether a cached prefix may stand in for computing it: not if something of every position is asked for."""
        if self.pooling is not None:
            return self.pooling.pooling == "last"
        return not self.sampling.needs_prompt

    @property
    def key(self) -> CacheKey:
        return CacheKey(self.namespace, self.tokens)

    @property
    def eos_in_effect(self) -> tuple[int, ...]:
        """End-of-text ids that count for this request."""
        return () if self.sampling.ignore_eos else self.eos_token_ids

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every id that ends the text and that a token can have (int32)."""
        return tuple({t: None for t in (*self.eos_in_effect, *self.sampling.stop_token_ids) if 0 <= t < 2**31})
