"""What one engine step does: the scheduler's plan for it, and what came of it. Numpy only.

The plan is small: each worker mirrors the request table (page tables, tokens, lengths), so a decode step of
256 requests carries a few short arrays. The runner never needs the previous step's tokens from the host: it
keeps each slot's last token on the device, so step n+1 may be planned before step n's tokens are known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from core.interfaces.params import PoolingParams, SamplingParams

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Admission:
    """A request enters a slot with this step (for the first time, or again after preemption).

    token_ids [n] int32: prompt, plus what it had generated before a preemption. num_prompt: how many of them
    are prompt. seed: resolved, never None. Sampling of the token at absolute position p uses (seed, p) only.
    pooling: the request wants a vector; its one "token" is no token (0), and the vector comes in `StepResult.extras`.
    """

    slot: int
    request_id: int
    token_ids: Int32
    num_prompt: int
    sampling: SamplingParams
    seed: int
    eos_token_ids: tuple[int, ...] = ()
    pooling: PoolingParams | None = None


@dataclass(slots=True)
class StepPlan:
    """N rows, decodes first; rows are in the order of `slots`.

    admissions: applied before anything else. page_slots [K], page_index [K], page_ids [G, K]: table updates
    `page_table[g][page_slots, page_index] = page_ids[g]`, applied next.
    slots [N]; q_lens [N] new tokens; seq_lens [N] KV length including them. A row's new tokens are at positions
    seq_len - q_len .. seq_len - 1. samples [N] bool: the row yields a token (decode, or last prefill chunk).
    masked: sampling waits for what depends on tokens that are not known when the step is launched: token masks, and the
    texts that logit processors look at. The step's handle gets the masks, if there are any, by `sample`, once the steps
    before it are complete and before anything else is launched.
    """

    step: int
    slots: Int32
    num_decodes: int
    q_lens: Int32
    seq_lens: Int32
    samples: npt.NDArray[np.bool_]
    admissions: list[Admission] = field(default_factory=list)
    page_slots: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    page_index: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    page_ids: Int32 = field(default_factory=lambda: np.empty((1, 0), np.int32))
    masked: bool = False

    @property
    def num_tokens(self) -> int:
        return int(self.q_lens.sum())


@dataclass(slots=True)
class TokenMasks:
    """Which tokens some rows may have. rows [M] int32: among the step's sampled rows. words [M, W] uint32: bit
    `id % 32` of word `id // 32` is set where the token is allowed."""

    rows: Int32
    words: npt.NDArray[np.uint32]


@dataclass(slots=True)
class RowExtras:
    """What one row of a step gives beside a token, where its request asked for it; None where not.

    prompt_logprobs: of the prompt tokens at positions prompt_start .. prompt_start + n - 1, each given the tokens
    before it: rows as in `Logprobs`. hidden [n, D] float32: final hidden states, of the positions from hidden_start on.
    pooled [D] float32: the vector of a pooling request, with the step that ends its prompt.
    """

    prompt_start: int = 0
    prompt_logprobs: Logprobs | None = None
    hidden_start: int = 0
    hidden: npt.NDArray[np.float32] | None = None
    pooled: npt.NDArray[np.float32] | None = None


@dataclass(slots=True)
class Logprobs:
    """For the S sampled rows; rows that did not ask hold NaN / -1. K = the largest number asked for.

    chosen [S] float32; top_ids [S, K] int32; top [S, K] float32, descending. Natural log of the softmax of the
    model's logits as they came, before bias, penalties, temperature and filters.
    """

    chosen: npt.NDArray[np.float32]
    top_ids: Int32
    top: npt.NDArray[np.float32]


@dataclass(slots=True)
class StepTimes:
    """Where the time of a step went, in seconds, on the host unless said otherwise.

    build_s: the plan becomes inputs, and attention plans them. launch_s: the model and the sampling are queued (where
    steps are not asynchronous, computed). wait_s: blocked until the device is done. output_s: the device's output
    becomes a result. gpu_s: between events before and after the step, on the device; 0 unless the device times steps.
    """

    build_s: float = 0.0
    launch_s: float = 0.0
    wait_s: float = 0.0
    output_s: float = 0.0
    gpu_s: float = 0.0


@dataclass(slots=True)
class StepResult:
    """slots [S]: the rows with `samples`, in plan order. tokens [S, W], counts [S]: accepted tokens (W = 1 but
    for speculative steps). failed [S] bool: non-finite logits; such a request ends with an error.
    error: why the whole step failed (then every row of `failed` is True, and requests whose rows yield no token
    in this step have failed as well), or None.
    extras: slot -> RowExtras, of any rows of the plan (chunks of prompts too); empty for most steps.
    errors: slot -> why, of failed rows where it is more than non-finite logits of the model."""

    step: int
    slots: Int32
    tokens: Int32
    counts: Int32
    failed: npt.NDArray[np.bool_]
    logprobs: Logprobs | None = None
    device_time_s: float = 0.0
    error: str | None = None
    extras: dict[int, RowExtras] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    times: StepTimes = field(default_factory=StepTimes)
