"""Logits to tokens. Every row is drawn from its own immutable parameters; there is no shared random state.

The arithmetic is that of named operations (`core.ops.sampling`), which a device may replace. Order: logit bias,
penalties, logit processors, min_tokens, token masks, temperature, top-k, top-p, min-p, draw. A batch of plain greedy
rows is one reduction. In a mixed batch only the rows that need a stage go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.interfaces.step import Admission, Int32, TokenMasks
from core.ops import sampling
from core.ops.reference import REFERENCES
from core.runner import logprobs, penalties
from core.runner.processors import RowEdits
from core.runner.sampling_inputs import Draw, FilterFacts, SamplingInputs, Stage, sampling_inputs
from core.runner.sampling_table import PENALISED, SamplingTable
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
        self._chunk_rows = max(1, _HOST_CHUNK // vocab_size) if transfer.direct else 1 << 30
        self._candidates = transfer.direct and self._threshold is sampling.sampling_threshold

    def admit(self, admission: Admission) -> None:
        """A request enters a slot."""
        self.table.admit(admission)
        if self.table.flags[admission.slot] & PENALISED:
            self._counts.admit(admission)

    def inputs(self, slots: Int32, positions: Int32) -> SamplingInputs | None:
        """What `sample` takes from the host for rows with these slots [S]; None if all of them take the arg max of what
        the model gives and ask for nothing else. positions [S]: where in its sequence each token will stand."""
        flags = self.table.flags[slots]
        if not np.count_nonzero(flags):
            return None
        return sampling_inputs(self.table, self._counts, flags, slots, positions, self._chunk_rows)

    def sample(
        self,
        logits: torch.Tensor,
        inputs: SamplingInputs | None,
        masks: TokenMasks | None = None,
        edits: RowEdits | None = None,
        greedy: Sampled | None = None,
    ) -> Sampled:
        """One token per row. logits [S, V] any float dtype, not changed; inputs: of these rows, uploaded here if they
        are not on the device; masks: what some rows may have; edits: rows with logit processors; greedy: the arg max of
        each row, where it is known already (used up). Tokens of penalised rows are counted."""
        if inputs is None:
            if masks is None and edits is None:
                return greedy or self._greedy(logits)
            inputs = SamplingInputs()
        inputs.upload(self._transfer)

        work, raw_best = logits, None
        if inputs.edit or masks is not None or edits is not None:
            raw_best = logits.amax(dim=-1)  # an infinity must not hide behind a forbidden id
            work = logits.to(torch.float32, copy=True)
            self._edit(work, inputs, masks, edits)
            if masks is not None:
                work = self._masked(work, masks)
        found = greedy if greedy is not None and work is logits else self._greedy(work)
        best, tokens = found.best, found.tokens
        for draw in inputs.draws:
            tokens = self._draw(work, best, tokens, draw)
        if inputs.penalties is not None:
            *_, rows, count_rows = inputs.penalties.tensors
            self._counts.add(count_rows, tokens[rows])
        if raw_best is not None:
            best = raw_best if edits is None else self._usable(raw_best, best, edits)
        if inputs.logprobs is None:
            return Sampled(tokens, best)

        asking, wanted = inputs.logprobs.rows.astype(np.int32), self.table.num_logprobs[inputs.logprobs.slots]
        given = (logits, tokens)
        if inputs.logprobs.tensors:  # not all ask
            (rows,) = inputs.logprobs.tensors
            given = (logits[rows], tokens[rows])
        values = self._token_logprobs(*given, int(wanted.max()))
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
        self, work: torch.Tensor, inputs: SamplingInputs, masks: TokenMasks | None, edits: RowEdits | None
    ) -> None:
        """Bias, penalties, logit processors, min_tokens in place. min_tokens yields to a mask that allows nothing but
        an end."""
        if inputs.bias is not None:
            penalties.apply_bias(work, inputs.bias.tensors)
        if inputs.penalties is not None:
            penalties.apply_penalties(work, self._counts, inputs.penalties.tensors, self._penalize)
        if edits is not None:
            edits.apply(work)
        if inputs.min_tokens is not None:
            forbidden = inputs.min_tokens.tensors
            if masks is not None:
                forbidden = self._with_way_on(inputs.min_tokens, masks)
            if forbidden:
                penalties.forbid(work, forbidden)

    def _with_way_on(self, stage: Stage, masks: TokenMasks) -> Sequence[torch.Tensor]:
        """Of the rows of `stage`, those that may have another token than the ends of their texts: its tensors for them;
        empty if there is none."""
        masked = dict(zip(masks.rows.tolist(), masks.words, strict=True))
        kept = np.ones(len(stage.rows), np.bool_)
        for at, (row, slot) in enumerate(zip(stage.rows.tolist(), stage.slots.tolist(), strict=True)):
            words = masked.get(row)
            if words is not None:
                ends = self.table.forbidden[slot]
                words = words.copy()
                np.bitwise_and.at(words, ends // 32, ~(np.uint32(1) << (ends % 32).astype(np.uint32)))
                kept[at] = words.any()
        if kept.all():
            return stage.tensors
        if not kept.any():
            return ()
        return self._transfer.upload(*penalties.forbidden_arrays(self.table, stage.rows[kept], stage.slots[kept]))

    def _draw(self, work: torch.Tensor, best: torch.Tensor, tokens: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Tokens [S] with those of `draw` drawn: `tokens`, the arg max, which is used up, or others."""
        keys, temperature, *rest = draw.tensors
        # Without a copy of the logits where all rows are drawn alike, as in most batches.
        index = None if draw.every_row else rest.pop()
        mine = work if index is None else work[index]
        scaled = torch.div(mine, temperature[:, None]).float()
        if draw.filters is None:
            found = self._race(scaled, self._vocab, keys)
        elif self._candidates:
            peak = (best if index is None else best[index]).to(torch.float32) / temperature
            found = self._draw_candidates(scaled, peak[:, None], keys, rest, draw.filters)
        else:
            found = self._draw_filtered(scaled, keys, rest, draw.filters)
        if index is None:
            return found
        tokens[index] = found
        return tokens

    def _draw_filtered(
        self, scaled: torch.Tensor, keys: torch.Tensor, limits: Sequence[torch.Tensor], facts: FilterFacts
    ) -> torch.Tensor:
        """scaled [R, V] float32 (overwritten), keys [R, 2], limits: top_k, top_p, min_p [R]; returns tokens [R] int64.
        Reads nothing back."""
        limit = self._threshold(
            scaled, *limits, max_k=facts.max_k, any_without_k=facts.any_without_k, any_top_p=facts.any_top_p
        )
        return self._race(scaled.masked_fill_(scaled < limit[:, None], _NEG_INF), self._vocab, keys)

    def _draw_candidates(
        self,
        scaled: torch.Tensor,
        peak: torch.Tensor,
        keys: torch.Tensor,
        limits: Sequence[torch.Tensor],
        facts: FilterFacts,
    ) -> torch.Tensor:
        """The same, and the same tokens, by way of the largest logits only: they are enough if nothing at or above the
        threshold can lie below the last of them, which is looked at. peak [R, 1]: the rows' maxima."""
        (top_k, top_p, min_p), any_top_p, vocab_size = limits, facts.any_top_p, scaled.shape[1]
        needs_all = any_top_p and facts.any_without_k
        total = sampling.row_mass(scaled, peak) if needs_all else None
        width = _candidate_count(facts.max_k, needs_all, vocab_size)
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


def _candidate_count(max_k: int, needs_all: bool, vocab_size: int) -> int:
    """How many of the largest logits to look at first."""
    if max_k > _MAX_CANDIDATES:
        return vocab_size
    return min(vocab_size, (_MAX_CANDIDATES if needs_all else max_k) + _CANDIDATE_MARGIN)
