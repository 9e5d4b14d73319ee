"""RequestTable: what is known of every running request, as arrays indexed by slot."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core.scheduler.request import Request

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

EMPTY, PREFILL, DECODE = 0, 1, 2
MAX_STOP_COLUMNS = 16  # requests with more stop ids are looked at one by one
FIRST_COLUMNS = 1024


class RequestTable:
    """S slots. A slot is taken, released, and given out again once its last step has completed.

    state [S] uint8: EMPTY, PREFILL (prompt not all scheduled), DECODE. tokens [S, >= total_len] int32.
    prompt_len; prefill_len: tokens known at admission, all of which the prefill computes; total_len: tokens
    known now; seq_len: KV length once the steps scheduled so far have run; verified_len: KV length of complete,
    finite steps; max_len, min_len: total length at which the text must end / from which it may; last_step: last
    step that touches the slot; epoch: grows when the slot is released, so late results are recognised. tenant: index
    in `TenantShares`.
    stop_ids [S, K] int32, padded with -1.
    """

    def __init__(self, num_slots: int, page_table: Int32, max_tokens: int) -> None:
        self.page_table = page_table
        self.max_tokens = max_tokens
        self.requests: list[Request | None] = [None] * num_slots
        self.tokens = np.zeros((num_slots, min(FIRST_COLUMNS, max_tokens)), np.int32)
        self.state = np.zeros(num_slots, np.uint8)
        self.request_id = np.full(num_slots, -1, np.int64)
        self.order = np.zeros(num_slots, np.int64)
        self.priority = np.zeros(num_slots, np.int64)
        self.tenant = np.zeros(num_slots, np.int32)
        self.prompt_len = np.zeros(num_slots, np.int32)
        self.prefill_len = np.zeros(num_slots, np.int32)
        self.total_len = np.zeros(num_slots, np.int32)
        self.seq_len = np.zeros(num_slots, np.int32)
        self.verified_len = np.zeros(num_slots, np.int32)
        self.max_len = np.zeros(num_slots, np.int32)
        self.min_len = np.zeros(num_slots, np.int32)
        self.last_step = np.full(num_slots, -1, np.int64)
        self.epoch = np.zeros(num_slots, np.int64)
        self.stop_ids = np.full((num_slots, 2), -1, np.int32)
        self._many_stops: dict[int, frozenset[int]] = {}
        self.num_released = 0  # since the start
        self._free = list(range(num_slots - 1, -1, -1))
        self._fenced: list[tuple[int, int]] = []

    @property
    def num_output(self) -> Int32:
        """Generated tokens by slot."""
        return self.total_len - self.prompt_len

    @property
    def num_free(self) -> int:
        """Slots that can be taken now."""
        return len(self._free)

    @property
    def num_fenced(self) -> int:
        """Slots that are free once the steps in flight have completed."""
        return len(self._fenced)

    @property
    def num_running(self) -> int:
        """Slots that hold a request."""
        return len(self.requests) - len(self._free) - len(self._fenced)

    def next_slot(self) -> int:
        """The slot that `take` takes next. There must be one."""
        return self._free[-1]

    def take(self, request: Request, cached: int, step: int) -> int:
        """Give `request` a slot, with `cached` tokens of KV present."""
        slot = self._free.pop()
        length, sampling = len(request.tokens), request.sampling
        self.requests[slot] = request
        request.slot = slot
        self._reserve(length + 1)
        self.tokens[slot, :length] = request.tokens
        self.state[slot] = PREFILL
        self.request_id[slot] = request.id
        self.order[slot] = request.order
        self.priority[slot] = request.priority
        self.prompt_len[slot] = request.num_prompt
        self.prefill_len[slot] = length
        self.total_len[slot] = length
        self.seq_len[slot] = cached
        self.verified_len[slot] = cached
        self.max_len[slot] = request.max_len
        self.min_len[slot] = min(request.num_prompt + sampling.min_tokens, request.max_len + 1)
        self.last_step[slot] = step
        self._set_stops(slot, request.stop_ids)
        return slot

    def release(self, slot: int, passed: int) -> None:
        """Take the slot back; it can be taken again once its last step is not after `passed`."""
        request = self.requests[slot]
        assert request is not None
        request.slot = -1
        self.requests[slot] = None
        self.state[slot] = EMPTY
        self.request_id[slot] = -1
        self.epoch[slot] += 1
        self.num_released += 1
        self._many_stops.pop(slot, None)
        fence = int(self.last_step[slot])
        if fence <= passed:
            self._free.append(slot)
        else:
            self._fenced.append((fence, slot))

    def fence_passed(self, step: int) -> None:
        """Steps up to `step` have completed."""
        if self._fenced:
            self._free.extend(slot for fence, slot in self._fenced if fence <= step)
            self._fenced = [(fence, slot) for fence, slot in self._fenced if fence > step]

    def append(self, slots: Int32, tokens: Int32) -> Int32:
        """One more known token for each of `slots` [n]; how many there are of each then [n]."""
        where = self.total_len[slots]
        if np.count_nonzero(where >= self.tokens.shape[1]):
            self._reserve(int(where.max()) + 1)
        self.tokens[slots, where] = tokens
        where += 1
        self.total_len[slots] = where
        return where

    def stopped(self, slots: Int32, tokens: Int32) -> npt.NDArray[np.bool_]:
        """Whether each of `tokens` [n], just appended, is one of its request's stop ids and may end the text."""
        equal = self.stop_ids[slots] == tokens[:, None]
        if not self._many_stops and not np.count_nonzero(equal):  # most steps
            return equal[:, 0]
        hit: npt.NDArray[np.bool_] = equal.any(axis=1)
        if self._many_stops:
            for i, slot in enumerate(slots.tolist()):
                hit[i] |= slot in self._many_stops and int(tokens[i]) in self._many_stops[slot]
        return hit & (self.total_len[slots] >= self.min_len[slots])

    def known(self, slot: int) -> Int32:
        """A copy of all tokens known of a slot."""
        return self.tokens[slot, : self.total_len[slot]].copy()

    def verified(self, slot: int) -> Int32:
        """A copy of the tokens whose KV complete, finite steps have written."""
        return self.tokens[slot, : self.verified_len[slot]].copy()

    def _set_stops(self, slot: int, ids: tuple[int, ...]) -> None:
        self.stop_ids[slot] = -1
        if not ids:
            return
        if len(ids) > MAX_STOP_COLUMNS:
            self._many_stops[slot] = frozenset(ids)
            return
        if len(ids) > self.stop_ids.shape[1]:
            wider = np.full((len(self.stop_ids), len(ids)), -1, np.int32)
            wider[:, : self.stop_ids.shape[1]] = self.stop_ids
            self.stop_ids = wider
        self.stop_ids[slot, : len(ids)] = ids

    def _reserve(self, columns: int) -> None:
        """Room for `columns` tokens a slot. Untouched columns cost address space only (zeroed lazily)."""
        have = self.tokens.shape[1]
        if columns <= have:
            return
        tokens = np.zeros((len(self.tokens), max(columns, min(2 * have, self.max_tokens))), np.int32)
        for slot in np.flatnonzero(self.state).tolist():
            known = int(self.total_len[slot])
            tokens[slot, :known] = self.tokens[slot, :known]
        self.tokens = tokens
