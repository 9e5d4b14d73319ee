"""Sampling parameters of all slots as a structure of arrays, on the host. Overwritten whole at admission."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core.interfaces.step import Admission, Int32

# Bits of SamplingTable.flags: what a row needs beyond arg max. A step whose rows have none takes the short way.
SAMPLED = 1  # drawn at random; else arg max
FILTERED = 2  # has top_k, top_p or min_p
PENALISED = 4  # has a repetition, frequency or presence penalty
BIASED = 8
MIN_TOKENS = 16
LOGPROBS = 32


class SamplingTable:
    """One row per slot.

    All arrays are indexed by slot. flags: what the row needs; what belongs to a stage that it does not need may be left
    from an earlier request. top_k: 0 is off. seed: as an unsigned 64-bit word. Lists exist only for rows that use them:
    `bias` (token ids, values), `forbidden` (ids that min_tokens holds back).
    """

    def __init__(self, num_slots: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.flags = np.zeros(num_slots, np.uint8)
        self.temperature = np.ones(num_slots, np.float32)
        self.top_k = np.zeros(num_slots, np.int64)
        self.top_p = np.ones(num_slots, np.float64)
        self.min_p = np.zeros(num_slots, np.float32)
        self.repetition = np.ones(num_slots, np.float32)
        self.frequency = np.zeros(num_slots, np.float32)
        self.presence = np.zeros(num_slots, np.float32)
        self.seed = np.zeros(num_slots, np.uint64)
        self.num_prompt = np.zeros(num_slots, np.int32)
        self.min_tokens = np.zeros(num_slots, np.int32)
        self.num_logprobs = np.zeros(num_slots, np.int32)
        self.bias: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = {}
        self.forbidden: dict[int, npt.NDArray[np.int64]] = {}

    def admit(self, admission: Admission) -> None:
        """Write the row of `admission.slot`; nothing of an earlier request in the slot has an effect any more."""
        slot, params = admission.slot, admission.sampling
        flags = self._drawn(slot, admission)
        if params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
            flags |= PENALISED
            self.repetition[slot] = params.repetition_penalty
            self.frequency[slot] = params.frequency_penalty
            self.presence[slot] = params.presence_penalty
        # Ids outside the vocabulary are refused in the front end; here they are left out, because a stray index on
        # a device would take the whole step down.
        self.bias.pop(slot, None)
        bias = sorted((t, b) for t, b in (params.logit_bias or {}).items() if 0 <= t < self.vocab_size)
        if bias:
            flags |= BIASED
            self.bias[slot] = (np.array([t for t, _ in bias], np.int64), np.array([b for _, b in bias], np.float32))
        self.forbidden.pop(slot, None)
        if params.min_tokens > 0:
            stops = {*params.stop_token_ids, *(() if params.ignore_eos else admission.eos_token_ids)}
            forbidden = sorted(t for t in stops if 0 <= t < self.vocab_size)
            if forbidden:
                flags |= MIN_TOKENS
                self.forbidden[slot] = np.array(forbidden, np.int64)
                self.num_prompt[slot] = admission.num_prompt
                self.min_tokens[slot] = min(params.min_tokens, 2**31 - 1)
        if params.logprobs is not None:
            flags |= LOGPROBS
            self.num_logprobs[slot] = params.logprobs
        self.flags[slot] = flags

    def _drawn(self, slot: int, admission: Admission) -> int:
        """What a row that is drawn at random needs for that; its flags."""
        params = admission.sampling
        if params.greedy:
            return 0
        self.seed[slot] = admission.seed & 0xFFFFFFFFFFFFFFFF
        self.temperature[slot] = params.temperature
        top_k = params.top_k if 0 < params.top_k < self.vocab_size else 0
        if not (top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0):
            return SAMPLED
        self.top_k[slot] = top_k
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        return SAMPLED | FILTERED

    def below_min_tokens(self, slots: Int32, positions: Int32) -> npt.NDArray[np.bool_]:
        """Which rows have generated fewer than min_tokens when they sample the token at `positions` [R]."""
        return positions - self.num_prompt[slots] < self.min_tokens[slots]
