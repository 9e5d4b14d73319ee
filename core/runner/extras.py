"""What a step gives beside tokens: prompt log-probabilities, hidden states, pooled vectors.

A step none of whose rows asks for such costs one look at their flags. Nothing here waits for the device: what a step
gives becomes a few tensors that travel to the host with its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from core.interfaces.model import CausalLM, ScoringModel
from core.interfaces.params import PoolingParams
from core.interfaces.step import Admission, Int32, Logprobs, RowExtras, StepPlan
from core.runner.transfer import Transfer

Int64 = npt.NDArray[np.int64]

# Bits of RowWishes.flags.
POOLED = 1
PROMPT_LOGPROBS = 2
HIDDEN = 4  # of the positions that tokens are drawn from
HIDDEN_PROMPT = 8  # and those before

# Logits of one piece of prompt positions, in elements: 64 MiB of float32, whatever the vocabulary.
LOGITS_ELEMENTS = 1 << 24


@dataclass(slots=True)
class StepExtras:
    """A step's extras on their way: `tensors` are on the device; `read` takes them as they are on the host.

    logprobs, hidden: (slot, first position, count) of the rows that have some, in the order of the tensors; for
    log-probabilities with the number of alternatives that the row asked for. pooled: (slot, width) of the rows of each
    pooled tensor.
    """

    tensors: list[torch.Tensor] = field(default_factory=list)
    logprobs: list[tuple[int, int, int, int]] = field(default_factory=list)
    hidden: list[tuple[int, int, int]] = field(default_factory=list)
    pooled: list[list[tuple[int, int]]] = field(default_factory=list)

    def read(self, host: Sequence[torch.Tensor]) -> dict[int, RowExtras]:
        """slot -> what its row gave. host: `tensors`, downloaded."""
        rows: dict[int, RowExtras] = {}
        rest = list(host)
        if self.logprobs:
            chosen, ids, top = (rest.pop(0).numpy() for _ in range(3))
            at = 0
            for slot, position, count, num_top in self.logprobs:
                mine = slice(at, at + count)
                row = rows.setdefault(slot, RowExtras())
                row.prompt_start = position
                row.prompt_logprobs = Logprobs(
                    chosen[mine], ids[mine, :num_top].astype(np.int32), top[mine, :num_top]
                )  # fmt: skip
                at += count
        if self.hidden:
            values, at = rest.pop(0).numpy(), 0
            for slot, position, count in self.hidden:
                row = rows.setdefault(slot, RowExtras())
                row.hidden_start, row.hidden = position, values[at : at + count]
                at += count
        for entries in self.pooled:
            for (slot, width), vector in zip(entries, rest.pop(0).numpy(), strict=True):
                rows.setdefault(slot, RowExtras()).pooled = vector[:width]
        return rows


class RowWishes:
    """What the request in each slot asks for, and what of its prompt is pooled so far.

    flags [S] uint8. sums [S, D] float32 on the device: the running sum (mean) or the first hidden state of prompts that
    take several steps; made when the first of them comes.
    """

    def __init__(
        self, num_slots: int, vocab_size: int, transfer: Transfer, ops: Mapping[str, Callable[..., Any]]
    ) -> None:
        self.flags = np.zeros(num_slots, np.uint8)
        self._num_prompt = np.zeros(num_slots, np.int64)
        self._start = np.zeros(num_slots, np.int64)
        self._num_top = np.zeros(num_slots, np.int64)
        self._pooling: list[PoolingParams | None] = [None] * num_slots
        self._sums: torch.Tensor | None = None
        self._chunk = max(1, LOGITS_ELEMENTS // vocab_size)
        self._transfer = transfer
        self._token_logprobs: Callable[..., tuple[torch.Tensor, ...]] = ops["token_logprobs"]

    def admit(self, admission: Admission) -> None:
        """A request enters a slot; nothing of an earlier one remains."""
        slot, sampling = admission.slot, admission.sampling
        self._pooling[slot] = admission.pooling
        if admission.pooling is not None:
            self.flags[slot] = POOLED
            return
        if sampling.prompt_logprobs is None and sampling.hidden_states is None:
            self.flags[slot] = 0
            return
        # Back after a preemption with tokens of its own: what its prompt gave was told with the first of them.
        told = len(admission.token_ids) > admission.num_prompt
        self._num_prompt[slot] = admission.num_prompt
        self._start[slot] = max(1, sampling.prompt_logprobs_start)
        self._num_top[slot] = sampling.prompt_logprobs or 0
        self.flags[slot] = (
            PROMPT_LOGPROBS * (sampling.prompt_logprobs is not None and not told)
            | HIDDEN * (sampling.hidden_states is not None)
            | HIDDEN_PROMPT * (sampling.hidden_states == "all" and not told)
        )

    def generating(self, slots: Int32) -> Int64 | None:
        """Which of the sampled rows [S] get a token; None if all do."""
        flags = self.flags[slots]
        if not np.count_nonzero(flags):  # most steps
            return None
        pooled = flags & POOLED != 0
        return np.flatnonzero(~pooled) if pooled.any() else None

    def collect(
        self, plan: StepPlan, hidden: torch.Tensor, tokens: Sequence[Int32], model: CausalLM
    ) -> StepExtras | None:
        """What the rows of `plan` give; None if no row asks. hidden [T, D]: of all of its tokens, in order; rows past
        them are padding. tokens: what each slot was admitted with."""
        flags = self.flags[plan.slots]
        if not np.count_nonzero(flags):
            return None
        ends = np.cumsum(plan.q_lens, dtype=np.int64)
        # A token at position p of row r is at `offsets[r] + p` of the step.
        offsets = ends - plan.seq_lens
        first = plan.seq_lens.astype(np.int64) - plan.q_lens
        found = StepExtras()
        self._logprobs(found, plan, flags, first, offsets, hidden, tokens, model)
        self._hidden(found, plan, flags, first, offsets, hidden)
        rows = np.flatnonzero(flags & POOLED)
        if len(rows):
            self._pooled(found, plan, rows, first, offsets, hidden, model)
        return found if found.tensors else None

    def _logprobs(
        self,
        found: StepExtras,
        plan: StepPlan,
        flags: npt.NDArray[np.uint8],
        first: Int64,
        offsets: Int64,
        hidden: torch.Tensor,
        tokens: Sequence[Int32],
        model: CausalLM,
    ) -> None:
        """The hidden state at position p tells of the token at p + 1, which may be in the next chunk."""
        where, targets = [], []
        for row in np.flatnonzero(flags & PROMPT_LOGPROBS).tolist():
            slot = int(plan.slots[row])
            begin = max(int(first[row]) + 1, int(self._start[slot]))
            end = min(int(plan.seq_lens[row]) + 1, int(self._num_prompt[slot]))
            if begin < end:
                where.append(np.arange(begin - 1, end - 1) + offsets[row])
                targets.append(tokens[slot][begin:end].astype(np.int64))
                found.logprobs.append((slot, begin, end - begin, int(self._num_top[slot])))
        if not where:
            return
        num_top = max(entry[3] for entry in found.logprobs)
        index, wanted = self._transfer.upload(np.concatenate(where), np.concatenate(targets))
        pieces = [
            self._token_logprobs(model.compute_logits(hidden.index_select(0, part)), target, num_top)
            for part, target in zip(index.split(self._chunk), wanted.split(self._chunk), strict=True)
        ]
        found.tensors += [torch.cat(column) for column in zip(*pieces, strict=True)]

    def _hidden(
        self,
        found: StepExtras,
        plan: StepPlan,
        flags: npt.NDArray[np.uint8],
        first: Int64,
        offsets: Int64,
        hidden: torch.Tensor,
    ) -> None:
        where = []
        for row in np.flatnonzero(flags & HIDDEN).tolist():
            end = int(plan.seq_lens[row])
            begin = int(first[row]) if flags[row] & HIDDEN_PROMPT else end - bool(plan.samples[row])
            if begin < end:
                where.append(np.arange(begin, end) + offsets[row])
                found.hidden.append((int(plan.slots[row]), begin, end - begin))
        if where:
            (index,) = self._transfer.upload(np.concatenate(where))
            found.tensors.append(hidden.index_select(0, index).float())

    def _pooled(
        self,
        found: StepExtras,
        plan: StepPlan,
        rows: Int64,
        first: Int64,
        offsets: Int64,
        hidden: torch.Tensor,
        model: CausalLM,
    ) -> None:
        wishes = [self._pooling[slot] for slot in plan.slots[rows].tolist()]
        vectors: list[torch.Tensor] = []
        slots: list[int] = []
        heads: list[str] = []
        tokens: list[tuple[int, ...]] = []
        for mode in ("last", "first", "mean"):
            mine = np.array([at for at, wish in enumerate(wishes) if wish is not None and wish.pooling == mode], int)
            if not len(mine):
                continue
            done = plan.samples[rows[mine]]
            if mode == "last":
                if not done.any():
                    continue
                finished = rows[mine[done]]
                (index,) = self._transfer.upload(plan.seq_lens[finished] - 1 + offsets[finished])
                vectors.append(hidden.index_select(0, index).float())
            else:
                gathered = self._gathered(plan, rows[mine], first, offsets, hidden, mean=mode == "mean")
                if gathered is None:
                    continue
                vectors.append(gathered)
            slots += plan.slots[rows[mine[done]]].tolist()
            finished_wishes = [wish for at in mine[done].tolist() if (wish := wishes[at]) is not None]
            heads += [wish.head for wish in finished_wishes]
            tokens += [wish.tokens for wish in finished_wishes]
        if not vectors:
            return
        made = torch.cat(vectors) if len(vectors) > 1 else vectors[0]
        for head in dict.fromkeys(heads):
            part, mine = made, np.array([at for at, own in enumerate(heads) if own == head], np.int64)
            if len(mine) < len(heads):
                (index,) = self._transfer.upload(mine)
                part = made.index_select(0, index)
            if head == "scores":
                part = cast(ScoringModel, model).compute_scores(part.to(hidden.dtype)).float()
            elif head == "tokens":
                part = self._tokens(part.to(hidden.dtype), [tokens[at] for at in mine.tolist()], model)
            found.tensors.append(part)
            widths = [len(tokens[at]) if head == "tokens" else part.shape[1] for at in mine.tolist()]
            found.pooled.append(list(zip([slots[at] for at in mine.tolist()], widths, strict=True)))

    def _tokens(self, hidden: torch.Tensor, tokens: list[tuple[int, ...]], model: CausalLM) -> torch.Tensor:
        """Log-probabilities [N, K] of each row's tokens as the next; K is the largest number asked for."""
        ids = np.zeros((len(tokens), max(len(own) for own in tokens)), np.int64)
        for row, own in enumerate(tokens):
            ids[row, : len(own)] = own
        (wanted,) = self._transfer.upload(ids)
        pieces = []
        for part, target in zip(hidden.split(self._chunk), wanted.split(self._chunk), strict=True):
            logits = model.compute_logits(part).float()
            pieces.append(logits.gather(1, target) - logits.logsumexp(-1, keepdim=True))
        return torch.cat(pieces)

    def _gathered(
        self, plan: StepPlan, rows: Int64, first: Int64, offsets: Int64, hidden: torch.Tensor, *, mean: bool
    ) -> torch.Tensor | None:
        """Mean or first hidden state [F, D] float32 of the F rows that end their prompts here; sums of the others are
        kept for their next chunk. A row at position 0 begins anew, as after a preemption."""
        begins, ends = first[rows] + offsets[rows], plan.seq_lens[rows] + offsets[rows]
        if mean:
            spans = zip(begins.tolist(), ends.tolist(), strict=True)
            here = torch.stack([hidden[begin:end].sum(0, dtype=torch.float32) for begin, end in spans])
        else:
            (index,) = self._transfer.upload(begins)
            here = hidden.index_select(0, index).float()
        done, begun = plan.samples[rows], first[rows] > 0
        if begun.any() or not done.all():
            if self._sums is None:
                shape = (len(self.flags), hidden.shape[1])
                self._sums = torch.zeros(shape, dtype=torch.float32, device=hidden.device)
            slots, later = self._transfer.upload(plan.slots[rows].astype(np.int64), begun[:, None])
            before = self._sums.index_select(0, slots)
            # A slot's old sum may be another request's, even one that is not finite.
            here = torch.where(later, before + here if mean else before, here)
            self._sums.index_copy_(0, slots, here)
        if not done.any():
            return None
        if not done.all():
            (index,) = self._transfer.upload(np.flatnonzero(done))
            here = here.index_select(0, index)
        if mean:
            (lengths,) = self._transfer.upload(plan.seq_lens[rows[done]].astype(np.float32)[:, None])
            here = here / lengths
        return here
