"""Log-probabilities of the model's own distribution, for rows that ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from core.interfaces.step import Int32, Logprobs


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """Of B asking rows: chosen [B] float32, top_ids [B, K] int64, top [B, K] float32 descending."""

    chosen: torch.Tensor
    top_ids: torch.Tensor
    top: torch.Tensor


def spread(tensors: LogprobTensors, rows: npt.NDArray[np.integer[Any]], wanted: Int32, num_rows: int) -> Logprobs:
    """Put the B asking rows among all S = num_rows rows. Tensors on the host; rows [B]; wanted [B]: how many
    alternatives each row asked for. What was not asked for is NaN / -1."""
    num_top = tensors.top.shape[1]
    chosen = np.full(num_rows, np.nan, np.float32)
    ids = np.full((num_rows, num_top), -1, np.int32)
    top = np.full((num_rows, num_top), np.nan, np.float32)
    chosen[rows] = tensors.chosen.numpy()
    asked = np.arange(num_top) < wanted[:, None]
    ids[rows] = np.where(asked, tensors.top_ids.numpy(), -1)
    top[rows] = np.where(asked, tensors.top.numpy(), np.nan)
    return Logprobs(chosen=chosen, top_ids=ids, top=top)
