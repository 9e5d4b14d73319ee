"""TokenBucket: so much a minute, a minute's worth at once. On a monotonic clock: wall-clock jumps do nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class TokenBucket:
    """Holds at most `per_minute`, refilled evenly. `take` may overdraw it: what is only known afterwards (generated
    tokens) is paid back before anything else gets in."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at_s = clock()

    @property
    def level(self) -> float:
        """What can be taken now; below 0: overdrawn."""
        now_s = self._clock()
        if now_s > self._at_s:
            self._level = min(self._level + (now_s - self._at_s) * self.per_minute / 60, self.per_minute)
            self._at_s = now_s
        return self._level

    def take(self, amount: float) -> None:
        """Take `amount`, whether it is there or not."""
        self._level = self.level - amount

    def give_back(self, amount: float) -> None:
        """What was taken and not used."""
        self._level = min(self.level + amount, self.per_minute)

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` can be taken; infinite if it never can."""
        if amount > self.per_minute:
            return math.inf
        return max(0.0, (amount - self.level) * 60 / self.per_minute)

    @property
    def reset_s(self) -> float:
        """Seconds until it is full."""
        return self.wait_s(self.per_minute)

    def resized(self, per_minute: float) -> TokenBucket:
        """A bucket of another size that owes what this one owes."""
        bucket = TokenBucket(per_minute, self._clock)
        bucket.take(min(self.per_minute - self.level, per_minute - min(self.level, 0.0)))
        return bucket
