"""Pinned host memory that uploads are packed in: allocated once, used again and again."""

from __future__ import annotations

from typing import Protocol

import torch

SEGMENT_BYTES = 2 << 20
NUM_SEGMENTS = 4
_ALIGNMENT = 64


class Fence(Protocol):
    """An event."""

    def synchronize(self) -> None: ...


class StagingRing:
    """Segments in turn, one for each step. A segment is given out again only once the event that was recorded behind
    its copies has passed, which with two steps in flight it has long since.

    What does not fit is allocated from torch's cache of pinned memory, which guards itself.
    """

    def __init__(
        self, *, segment_bytes: int = SEGMENT_BYTES, num_segments: int = NUM_SEGMENTS, pinned: bool = True
    ) -> None:
        self._pinned = pinned
        self._segments = [torch.empty(segment_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(num_segments)]
        self._fences: list[Fence | None] = [None] * num_segments
        self._current = 0
        self._used = 0

    def take(self, num_bytes: int) -> torch.Tensor:
        """A buffer [num_bytes], to be filled and copied from before the next `close`."""
        segment = self._segments[self._current]
        end = self._used + num_bytes
        if end > len(segment):
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        if (fence := self._fences[self._current]) is not None:
            fence.synchronize()
            self._fences[self._current] = None
        taken = segment[self._used : end]
        self._used = -(-end // _ALIGNMENT) * _ALIGNMENT
        return taken

    def close(self, fence: Fence) -> None:
        """The copies out of the buffers taken so far are queued before `fence`."""
        if not self._used:
            return
        self._fences[self._current] = fence
        self._current = (self._current + 1) % len(self._segments)
        self._used = 0
