"""What the scheduler is told about model and memory, and the finish codes it answers with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """context_length: most tokens of prompt plus output. num_pages: of each group, the null page included.
    chunk_tokens: token budget of a step. max_running: most requests that hold a slot."""

    context_length: int
    num_pages: int
    page_size: int
    chunk_tokens: int
    max_running: int
    num_groups: int = 1

    @property
    def max_pages(self) -> int:
        """Columns of the page table: pages of the longest request that context and memory allow."""
        return min(-(-self.context_length // self.page_size), self.num_pages - 1)


class Finish(IntEnum):
    """Index into `core.engine.messages.FINISH_REASONS`."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4
