"""The tokens of a complete step enter the table: what each row got, and whether its text ends with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.interfaces.step import StepResult
from core.scheduler.events import StepEvents
from core.scheduler.facts import Finish
from core.scheduler.plan import Flight, Int32
from core.scheduler.table import RequestTable

_LENGTH = np.uint8(Finish.LENGTH)


@dataclass(slots=True)
class TakenTokens:
    """Of the n rows whose requests are still in their slots: slots [n]; failed [n]: whose logits were not finite, and
    how many these are; total [n]: tokens known of each now; events: the n entries."""

    slots: Int32
    failed: npt.NDArray[np.bool_]
    num_failed: int
    total: Int32
    events: StepEvents


def take_tokens(table: RequestTable, flight: Flight, result: StepResult, row_numbers: Int32) -> TakenTokens:
    """row_numbers: 0, 1, ... for as many rows as a step can have. Vectorised: no loop over rows."""
    slots, lens, rows = flight.slots, flight.seq_lens, row_numbers[: len(flight.slots)]
    tokens, failed = result.tokens[:, 0], result.failed
    if table.num_released != flight.num_released:
        # Late results of requests that have left their slot are dropped.
        rows = rows[table.epoch[slots] == flight.epochs]
        slots, lens, tokens, failed = slots[rows], lens[rows], tokens[rows], failed[rows]
    tokens = tokens.astype(np.int32)
    num_failed = int(np.count_nonzero(failed))
    if num_failed:
        tokens[failed] = -1
        good = ~failed
        table.append(slots[good], tokens[good])
        table.verified_len[slots[good]] = lens[good]
        total = table.total_len[slots]
    else:
        total = table.append(slots, tokens)
        table.verified_len[slots] = lens
    # Finish.NONE is 0 and Finish.LENGTH is the only other value that a comparison can give.
    finish = (total >= table.max_len[slots]).view(np.uint8) * _LENGTH
    stopped = table.stopped(slots, tokens)
    if np.count_nonzero(stopped):
        finish[stopped] = Finish.STOP
    if num_failed:
        finish[failed] = Finish.ERROR
    return TakenTokens(slots, failed, num_failed, total, StepEvents(table.request_id[slots], tokens, finish, rows))
