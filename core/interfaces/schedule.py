"""SchedulePolicy: which waiting request is admitted next, and how many tokens a step may compute.

Fairness stays core's: requests of higher priority come first (lower ones have a guaranteed share), then those that were
preempted, then the tenant that has been served least for its weight. A policy orders the requests of one priority and
one tenant, and one that has been passed too often goes before all others of these. So does correctness: a policy that
raises, or returns anything but a reordering of what it was given, is reported by name and switched off; no request is
lost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from core.interfaces.context import PluginContext
from core.interfaces.prefix_cache import CacheKey, MatchResult

Match = Callable[[CacheKey], MatchResult]  # a look into the prefix cache that leaves no trace


class WaitingRequest(Protocol):
    """What a policy sees of a request. Lengths in tokens; max_len counts prompt and output; arrival_s is the
    monotonic clock's. key: what `match` takes. A request that is given again is the same object."""

    @property
    def id(self) -> int: ...

    @property
    def num_prompt(self) -> int: ...

    @property
    def max_len(self) -> int: ...

    @property
    def priority(self) -> int: ...

    @property
    def arrival_s(self) -> float: ...

    @property
    def key(self) -> CacheKey: ...


R = TypeVar("R", bound=WaitingRequest)


@dataclass(frozen=True, slots=True)
class StepLoad:
    """num_decodes: running requests that will decode. num_waiting: requests without a slot. chunk_tokens: the
    configured budget. last_tokens, last_step_s: tokens of the step finished last, and seconds that it took; 0 before
    the first."""

    num_decodes: int
    num_waiting: int
    chunk_tokens: int
    last_tokens: int = 0
    last_step_s: float = 0.0


class SchedulePolicy(ABC):
    """One policy, called from the scheduler's thread only, between two steps: what takes a millisecond here is a
    millisecond of every step. seed: for policies that draw; same seed, same order.

    reorders: whether `rank` may differ from first come, first served; if not it is never called.
    plans_steps: whether `step_tokens` may differ from the configured budget; if not it is never called.
    """

    reorders: ClassVar[bool] = True
    plans_steps: ClassVar[bool] = False

    def __init__(self, ctx: PluginContext, seed: int = 0) -> None:
        self.ctx = ctx
        self.seed = seed

    @abstractmethod
    def rank(self, waiting: Sequence[R], match: Match) -> Sequence[R]:
        """`waiting`, two or more in first-come order and not to be changed; returns all of it, in the order of
        admission. Ties keep their order. `match` costs a walk through the prefix cache: with a long queue, call it for
        some requests only, or not at all."""

    def step_tokens(self, load: StepLoad) -> int:
        """Token budget of the next step; core cuts it to 1 .. load.chunk_tokens. Running decodes count first and are
        never left out: a budget of load.num_decodes or less computes no prompt in this step."""
        return load.chunk_tokens
