"""StepEvents: what a completed step means for its requests."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from core.interfaces.errors import CoreError
from core.scheduler.facts import Finish


@dataclass(slots=True)
class StepEvents:
    """Parallel arrays of n entries, ready to travel as `core.engine.messages.StepOutputs`.

    ids [n] int64. tokens [n] int32, -1: no token, only a finish. finish [n] uint8: `Finish`. rows [n] int32: the
    entry's row in the StepResult (for log-probabilities), -1 if it has none. first: index of a request's first
    token -> its cached prompt tokens. errors: index -> message, or the error that a client shall get.

    A request has one entry a step. With several accepted tokens a step it would have one entry a token, in
    order, only the last of them with a finish: the arrays stay flat.
    """

    ids: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    finish: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.int32]
    first: dict[int, int] = field(default_factory=dict)
    errors: dict[int, str | CoreError] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def ends(cls, ids: list[int], errors: list[CoreError | None]) -> StepEvents:
        """Requests that ended without a step: each by its error, or by cancellation where that is None."""
        n = len(ids)
        finish = [Finish.ABORT if error is None else Finish.ERROR for error in errors]
        return cls(
            np.array(ids, np.int64),
            np.full(n, -1, np.int32),
            np.array(finish, np.uint8),
            np.full(n, -1, np.int32),
            errors={index: error for index, error in enumerate(errors) if error is not None},
        )

    def followed_by(self, other: StepEvents) -> StepEvents:
        """Both, `other` at the end; it has no first tokens."""
        return StepEvents(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.finish, other.finish]),
            np.concatenate([self.rows, other.rows]),
            self.first,
            self.errors | {len(self) + index: error for index, error in other.errors.items()},
        )
