"""Logits to tokens. Every row is drawn from its own immutable parameters; there is no shared random state.

The arithmetic is that of named operations (`core.ops.sampling`), which a device may replace. Order: logit bias,
penalties, logit processors, min_tokens, token masks, temperature, top-k, top-p, min-p, draw. A batch of plain greedy
rows is one reduction. In a mixed batch only the rows that need a stage go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from core.interfaces.step import Admission, Int32, TokenMasks
from core.ops import sampling
from core.ops.reference import REFERENCES
from core.runner import logprobs, noise, penalties
from core.runner.processors import RowEdits
from core.runner.sampling_table import (
    BIASED,
    FILTERED,
    LOGPROBS,
    MIN_TOKENS,
    PENALISED,
    SAMPLED,
    SamplingTable,
)
from core.runner.transfer import Transfer

_NEG_INF = float("-inf")
_MAX_CANDIDATES = 1024  # a larger top_k goes the way of the whole vocabulary
_CANDIDATE_MARGIN = 64  # room for ties at the k-th logit, common in bfloat16
_HOST_CHUNK = 1 << 18  # elements worked on at once on the CPU: noise temporaries stay in the cache


@dataclass(frozen=True, slots=True)
class Sampled:
    """Device tensors of S rows. tokens [S] int64. best [S] float: each row's largest logit; the row is unusable
    (NaN, an infinity, or nothing but minus infinity) exactly if this is not finite.
    asking [B], wanted [B]: rows with log-probabilities and how many alternatives; `logprobs` None if B is 0."""

    tokens: torch.Tensor
    best: torch.Tensor
    logprobs: logprobs.LogprobTensors | None = None
    asking: Int32 | None = None
    wanted: Int32 | None = None


class Sampler:
    """Samples for slots whose parameters were admitted before.

    vocab_size: width of the logits. transfer: of the device that the logits are on. ops: that device's operations.
    """

    def __init__(
        self,
        num_slots: int,
        vocab_size: int,
        transfer: Transfer,
        ops: Mapping[str, Callable[..., Any]] = REFERENCES,
    ) -> None:
        self.table = SamplingTable(num_slots, vocab_size)
        self._transfer = transfer
        self._counts = penalties.TokenCounts(vocab_size, transfer)
        self._vocab = sampling.spread_ids(torch.arange(vocab_size, device=transfer.device))
        self._best_token: Callable[..., tuple[torch.Tensor, torch.Tensor]] = ops["best_token"]
        self._race: Callable[..., torch.Tensor] = ops["gumbel_argmax"]
        self._threshold: Callable[..., torch.Tensor] = ops["sampling_threshold"]
        self._penalize: Callable[..., torch.Tensor] = ops["penalize"]
        self._mask: Callable[..., torch.Tensor] = ops["mask_tokens"]
        self._token_logprobs: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = ops["token_logprobs"]
        # Looking at a few candidates first reads device values, which is free only where they are the host's; and a
        # device's own threshold is there to be used.
        self._host_masks = transfer.direct and self._mask is sampling.mask_tokens
        self._candidates = transfer.direct and self._threshold is sampling.sampling_threshold

    def admit(self, admission: Admission) -> None:
        """A request enters a slot."""
        self.table.admit(admission)
        if self.table.flags[admission.slot] & PENALISED:
            self._counts.admit(admission)

    def plain(self, slots: Int32) -> bool:
        """Whether all these rows take the arg max of what the model gives and ask for nothing else."""
        return not np.count_nonzero(self.table.flags[slots])

    def sample(
        self,
        logits: torch.Tensor,
        slots: Int32,
        positions: Int32,
        masks: TokenMasks | None = None,
        edits: RowEdits | None = None,
        greedy: Sampled | None = None,
    ) -> Sampled:
        """One token per row. logits [S, V] any float dtype, not changed; slots [S]; positions [S]: where in its
        sequence the token will stand; masks: what some rows may have; edits: rows with logit processors; greedy: the
        arg max of each row, where it is known already (used up). Tokens of penalised rows are counted."""
        flags = self.table.flags[slots]
        union = int(np.bitwise_or.reduce(flags)) if np.count_nonzero(flags) else 0
        if not union and masks is None and edits is None:
            return greedy or self._greedy(logits)

        work, raw_best, count_rows = logits, None, None
        if union & (BIASED | PENALISED | MIN_TOKENS) or masks is not None or edits is not None:
            raw_best = logits.amax(dim=-1)  # an infinity must not hide behind a forbidden id
            work = logits.to(torch.float32, copy=True)
            count_rows = self._edit(work, flags, slots, positions, masks, edits)
            if masks is not None:
                work = self._masked(work, masks)
        found = greedy if greedy is not None and work is logits else self._greedy(work)
        best, tokens = found.best, found.tokens
        if union & SAMPLED:
            drawn = np.flatnonzero(flags & SAMPLED)
            self._draw(work, best, tokens, drawn, flags[drawn], slots[drawn], positions[drawn])
        if count_rows is not None:
            self._counts.add(count_rows[1], tokens[count_rows[0]])
        if raw_best is not None:
            best = raw_best if edits is None else self._usable(raw_best, best, edits)
        if not union & LOGPROBS:
            return Sampled(tokens, best)

        asking = np.flatnonzero(flags & LOGPROBS).astype(np.int32)
        wanted = self.table.num_logprobs[slots[asking]]
        (rows,) = self._transfer.upload(asking.astype(np.int64))
        values = self._token_logprobs(logits[rows], tokens[rows], int(wanted.max()))
        return Sampled(tokens, best, logprobs.LogprobTensors(*values), asking, wanted)

    def _greedy(self, logits: torch.Tensor) -> Sampled:
        best, tokens = self._best_token(logits)
        return Sampled(tokens, best)

    def _usable(self, raw_best: torch.Tensor, best: torch.Tensor, edits: RowEdits) -> torch.Tensor:
        """raw_best [S] of the model's logits, but for edited rows that were fine: of those they were drawn with."""
        (index,) = self._transfer.upload(edits.rows)
        raw, drawn = raw_best.float(), best[index].float()
        return raw.index_copy(0, index, torch.where(raw[index].isfinite(), drawn, raw[index]))

    def _masked(self, work: torch.Tensor, masks: TokenMasks) -> torch.Tensor:
        """work [S, V] float32 (used up), with what the masks forbid at -inf."""
        every_row = len(masks.rows) == len(work) and bool((np.diff(masks.rows) == 1).all())
        if self._host_masks:  # unpacking bits is many times faster here than as an operation on tensors
            bits = np.unpackbits(masks.words.view(np.uint8), axis=1, count=work.shape[1], bitorder="little")
            forbidden = torch.from_numpy(bits == 0)
            if every_row:
                return work.masked_fill_(forbidden, _NEG_INF)
            rows = torch.from_numpy(masks.rows.astype(np.int64))
            work[rows] = work[rows].masked_fill_(forbidden, _NEG_INF)
            return work
        index, words = self._transfer.upload(masks.rows.astype(np.int64), masks.words.view(np.int32))
        if every_row:
            return self._mask(work, words)
        work[index] = self._mask(work[index], words)
        return work

    def _edit(
        self,
        work: torch.Tensor,
        flags: npt.NDArray[np.uint8],
        slots: Int32,
        positions: Int32,
        masks: TokenMasks | None,
        edits: RowEdits | None,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Bias, penalties, logit processors, min_tokens in place; for penalised rows (row in `work`, row in the
        counts). min_tokens yields to a mask that allows nothing but an end."""
        counted = None
        if (rows := _rows(flags, BIASED)).size:
            penalties.apply_bias(work, self.table, rows, slots[rows], self._transfer)
        if (rows := _rows(flags, PENALISED)).size:
            count_rows = penalties.apply_penalties(
                work, self.table, self._counts, rows, slots[rows], self._transfer, self._penalize
            )
            (index,) = self._transfer.upload(rows.astype(np.int64))
            counted = (index, count_rows)
        if edits is not None:
            edits.apply(work)
        if (rows := _rows(flags, MIN_TOKENS)).size:
            rows = rows[self.table.below_min_tokens(slots[rows], positions[rows])]
            if masks is not None:
                rows = self._with_way_on(rows, slots, masks)
            if rows.size:
                penalties.forbid(work, self.table, rows, slots[rows], self._transfer)
        return counted

    def _with_way_on(self, rows: Int32, slots: Int32, masks: TokenMasks) -> Int32:
        """Of `rows`, those that may have another token than the ends of their texts."""
        masked = dict(zip(masks.rows.tolist(), masks.words, strict=True))
        kept = []
        for row in rows.tolist():
            words = masked.get(row)
            if words is not None:
                ends = self.table.forbidden[int(slots[row])]
                words = words.copy()
                np.bitwise_and.at(words, ends // 32, ~(np.uint32(1) << (ends % 32).astype(np.uint32)))
            if words is None or words.any():
                kept.append(row)
        return np.array(kept, np.int32)

    def _draw(
        self,
        work: torch.Tensor,
        best: torch.Tensor,
        tokens: torch.Tensor,
        drawn: npt.NDArray[np.int64],
        flags: npt.NDArray[np.uint8],
        slots: Int32,
        positions: Int32,
    ) -> None:
        """Replace the arg max in `tokens` by a draw for the rows `drawn`; flags, slots, positions are of these."""
        keys = noise.row_keys(self.table.seed[slots], positions)
        filtered = flags & FILTERED != 0
        for rows_here, has_filters in ((np.flatnonzero(~filtered), False), (np.flatnonzero(filtered), True)):
            chunk = self._chunk_rows(work.shape[1])
            for start in range(0, len(rows_here), chunk):
                here = rows_here[start : start + chunk]
                index, row_keys, temperature = self._transfer.upload(
                    drawn[here], keys[here], self.table.temperature[slots[here]]
                )
                # Without a copy of the logits where all rows are drawn alike, as in most batches.
                every_row = len(here) == len(work)
                mine = work if every_row else work[index]
                scaled = torch.div(mine, temperature[:, None]).float()
                if not has_filters:
                    found = self._race(scaled, self._vocab, row_keys)
                elif self._candidates:
                    peak = best[index].to(torch.float32) / temperature
                    found = self._draw_candidates(scaled, peak[:, None], row_keys, slots[here])
                else:
                    found = self._draw_filtered(scaled, row_keys, slots[here])
                if every_row:
                    tokens.copy_(found)
                else:
                    tokens[index] = found

    def _draw_filtered(self, scaled: torch.Tensor, keys: torch.Tensor, slots: Int32) -> torch.Tensor:
        """scaled [R, V] float32 (overwritten), keys [R, 2]; returns tokens [R] int64. Reads nothing back."""
        table = self.table
        host_k, host_p = table.top_k[slots], table.top_p[slots]
        top_k, top_p, min_p = self._transfer.upload(host_k, host_p, table.min_p[slots])
        limit = self._threshold(
            scaled, top_k, top_p, min_p,
            max_k=int(host_k.max()), any_without_k=bool((host_k == 0).any()), any_top_p=bool((host_p < 1.0).any()),
        )  # fmt: skip
        return self._race(scaled.masked_fill_(scaled < limit[:, None], _NEG_INF), self._vocab, keys)

    def _draw_candidates(
        self, scaled: torch.Tensor, peak: torch.Tensor, keys: torch.Tensor, slots: Int32
    ) -> torch.Tensor:
        """The same, and the same tokens, by way of the largest logits only: they are enough if nothing at or above the
        threshold can lie below the last of them, which is looked at. peak [R, 1]: the rows' maxima."""
        table, vocab_size = self.table, scaled.shape[1]
        host_k, host_p = table.top_k[slots], table.top_p[slots]
        max_k, without_k = int(host_k.max()), bool((host_k == 0).any())
        any_top_p = bool((host_p < 1.0).any())
        top_k, top_p, min_p = self._transfer.upload(host_k, host_p, table.min_p[slots])
        total = sampling.row_mass(scaled, peak) if any_top_p and without_k else None
        width = _candidate_count(max_k, without_k and any_top_p, vocab_size)
        ranked, ids = sampling.rank(scaled, width)
        limit = sampling.ranked_threshold(ranked, top_k, top_p, min_p, total, any_top_p)
        kept = ranked.masked_fill(ranked < limit[:, None], _NEG_INF)
        tokens = ids.gather(1, self._race(kept, sampling.spread_ids(ids), keys)[:, None])[:, 0]
        if width < vocab_size:
            short = torch.nonzero(ranked[:, -1] >= limit)[:, 0]
            if len(short):
                rest, limit = scaled[short], limit[short]
                if any_top_p:  # else the threshold is right already, only the candidates were too few
                    part = None if total is None else total[short]
                    whole = sampling.rank(rest, vocab_size)[0]
                    limit = sampling.ranked_threshold(whole, top_k[short], top_p[short], min_p[short], part, any_top_p)
                rest.masked_fill_(rest < limit[:, None], _NEG_INF)
                tokens[short] = self._race(rest, self._vocab, keys[short])
        return tokens

    def _chunk_rows(self, vocab_size: int) -> int:
        return max(1, _HOST_CHUNK // vocab_size) if self._transfer.direct else 1 << 30


def _rows(flags: npt.NDArray[np.uint8], bit: int) -> Int32:
    return np.flatnonzero(flags & bit).astype(np.int32)


def _candidate_count(max_k: int, needs_all: bool, vocab_size: int) -> int:
    """How many of the largest logits to look at first."""
    if max_k > _MAX_CANDIDATES:
        return vocab_size
    return min(vocab_size, (_MAX_CANDIDATES if needs_all else max_k) + _CANDIDATE_MARGIN)
