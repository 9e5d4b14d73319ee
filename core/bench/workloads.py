"""The named workloads W0-W5. Standard library only: drivers of other engines import this in their own environments.

Token ids are random with a fixed seed, and differ in every repetition: only a common prefix can come from a cache.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Figure = Literal["start_s", "ms_per_token", "input_tokens_per_s", "output_tokens_per_s"]


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests sent at once. prefix_len: tokens in common, before input_len of each request's own; a warm-up puts them
    into the prefix cache. figure: the number that it is about. temperature: 0 is greedy."""

    name: str
    num_requests: int
    input_len: int
    output_len: int
    figure: Figure
    prefix_len: int = 0
    temperature: float = 0.0

    @property
    def prompt_len(self) -> int:
        return self.prefix_len + self.input_len

    @property
    def summary(self) -> str:
        """For people: requests, tokens in, tokens out."""
        prefix = f"{self.prefix_len} shared + " if self.prefix_len else ""
        drawn = f", temperature {self.temperature:g}" if self.temperature else ""
        return f"{self.num_requests} x {prefix}{self.input_len} in, {self.output_len} out{drawn}"

    def smaller(self, divisor: int) -> Workload:
        """The same kind of work with lengths and number of requests divided, for machines that are slower."""

        def less(value: int, least: int) -> int:
            return max(least, value // divisor) if value else 0

        return replace(
            self,
            num_requests=less(self.num_requests, 1 if self.num_requests == 1 else 2),
            input_len=less(self.input_len, 2),
            output_len=less(self.output_len, 1 if self.output_len == 1 else 3),
            prefix_len=less(self.prefix_len, 2),
        )

    def prompts(self, vocab_size: int, draw: int) -> list[list[int]]:
        """Token ids of each request. draw: warm-up and each repetition have one of their own."""
        rng = random.Random(f"{self.name}:{draw}")
        prefix = _ids(random.Random(f"{self.name}:prefix"), self.prefix_len, vocab_size)
        return [prefix + _ids(rng, self.input_len, vocab_size) for _ in range(self.num_requests)]

    def rate(self, seconds: float) -> float:
        """Tokens a second of the kind that the figure counts."""
        counted = self.input_len if self.figure == "input_tokens_per_s" else self.output_len
        return self.num_requests * counted / seconds


def _ids(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    # Ids below 3 are left to special tokens.
    return [3 + int(rng.random() * (vocab_size - 3)) for _ in range(count)]


WORKLOADS = {
    work.name: work
    for work in (
        Workload("W0", 1, 128, 1, "start_s"),
        Workload("W1", 1, 128, 256, "ms_per_token"),
        Workload("W2", 256, 1024, 256, "output_tokens_per_s"),
        Workload("W3", 16, 8192, 1, "input_tokens_per_s"),
        Workload("W4", 128, 128, 64, "output_tokens_per_s", prefix_len=4096),
        Workload("W5", 64, 128, 512, "output_tokens_per_s"),
        Workload("W5-t1", 64, 128, 512, "output_tokens_per_s", temperature=1.0),
    )
}


def chosen(names: Iterable[str], divisor: int = 1) -> list[Workload]:
    """Workloads by name, in their own order; "all" is all. Raises KeyError for a name that there is not."""
    wanted = list(WORKLOADS) if "all" in (listed := list(names)) else listed
    for name in wanted:
        WORKLOADS[name]
    return [work.smaller(divisor) if divisor > 1 else work for work in WORKLOADS.values() if work.name in wanted]
