"""What the ranks of a step have to do alike, although each finds out by itself whether it can."""

from __future__ import annotations

from collections.abc import Callable

import torch

from core.interfaces.build import Communicator
from core.interfaces.errors import EngineError


class Agreement:
    """Among the ranks that share each layer. A step that one of them launches and another replays, padded to another
    number of rows, would have them sum tensors of different sizes."""

    def __init__(self, tp: Communicator, device: torch.device) -> None:
        self._tp = tp
        self._device = device

    def everywhere(self, ok: bool) -> bool:
        """Whether it is `ok` on every rank. All have to ask at the same point; waits for the device."""
        if self._tp.size == 1:
            return ok
        count = self._tp.all_reduce(torch.full((1,), float(ok), device=self._device))
        return int(count.item()) == self._tp.size

    def attempt(self, work: Callable[[], None]) -> Exception | None:
        """Do it; None if that went well on every rank, else this rank's error, or one that tells of another's."""
        error: Exception | None = None
        try:
            work()
        except Exception as found:
            error = found
        if self.everywhere(error is None):
            return None
        return error or EngineError("another rank could not do it", hint="see that rank's log")
