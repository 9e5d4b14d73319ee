"""What a step's output on the host says: a StepResult."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from core.interfaces.step import StepPlan, StepResult
from core.runner import logprobs
from core.runner.running_step import Pending


def read_result(plan: StepPlan, pending: Pending, device_time_s: float) -> StepResult:
    """Of a step whose event has passed."""
    num_rows, generating, sampled = len(pending.slots), pending.generating, pending.sampled
    host, values, errors = list(pending.host), None, dict[int, str]()
    if sampled is None:
        tokens, failed = np.zeros((num_rows, 1), np.int32), np.zeros(num_rows, np.bool_)
    else:
        count = num_rows if generating is None else len(generating)
        drawn, best = host.pop(0).numpy()[:count], host.pop(0).numpy()[:count]
        tokens, failed = drawn.astype(np.int32).reshape(count, 1), ~np.isfinite(best)
        if generating is not None:
            tokens, failed = _among(tokens, generating, num_rows), _among(failed, generating, num_rows)
        if sampled.asking is not None and sampled.wanted is not None:
            asking = sampled.asking if generating is None else generating[sampled.asking]
            asked = logprobs.LogprobTensors(host.pop(0), host.pop(0), host.pop(0))
            values = logprobs.spread(asked, asking, sampled.wanted, num_rows)
        if pending.edits is not None:
            errors = pending.edits.read(host, drawn, best)
            failed |= np.isin(pending.slots, list(errors))
    extras = pending.extras.read(host) if pending.extras is not None else {}
    if generating is not None:
        for row in np.setdiff1d(np.arange(num_rows), generating).tolist():
            vector = extras[int(pending.slots[row])].pooled
            failed[row] = vector is None or not np.isfinite(vector).all()
    return StepResult(
        step=plan.step,
        slots=pending.slots,
        tokens=tokens,
        counts=np.ones(num_rows, np.int32),
        failed=failed,
        logprobs=values,
        device_time_s=device_time_s,
        extras=extras,
        errors=errors,
        times=pending.times,
    )


def _among(values: npt.NDArray[Any], rows: npt.NDArray[np.int64], num_rows: int) -> npt.NDArray[Any]:
    """values [R, ...] at `rows` [R] of `num_rows` rows, zeros elsewhere."""
    whole = np.zeros((num_rows, *values.shape[1:]), values.dtype)
    whole[rows] = values
    return whole
