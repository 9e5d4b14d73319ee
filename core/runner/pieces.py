"""PiecewiseSteps: steps with prefills of which the device has recorded all but attention.

A step of a few hundred tokens takes the device less time than the host needs to launch its kernels one by one.
Each recording is tried before it is used: what it gives has to be what the same step gives when it is launched.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from core.interfaces.attention import AttentionBackend, MlaWeights, TokenRows
from core.interfaces.batch import BatchLayout, ForwardBatch
from core.interfaces.build import Communicator
from core.interfaces.errors import EngineError, PluginError
from core.interfaces.hardware import Between, StepGraphs
from core.interfaces.model import CausalLM
from core.interfaces.step import StepPlan
from core.runner.agreement import Agreement
from core.runner.inputs import token_views
from core.runner.sampling_inputs import room_for
from core.runner.transfer import ALIGNMENT

_MOST_TABLE_BYTES = 4 << 20  # of page tables; a step with more of them is launched
# Of a hidden state, between a step replayed and the same step launched. Both have the same shapes and run the same
# kernels, so it should be none, but some add in an order that changes from run to run. Memory that was overwritten, or
# read too early, gives states that have nothing to do with one another.
_MOST_OFF = 0.2
_PADDING_ID = 1  # the embedding of token 0 is nothing in some models, which would prove little
logger = logging.getLogger(__name__)


class PiecewiseSteps:
    """One buffer of inputs for all sizes of `graphs.token_sizes`: one step runs at a time.

    buffer [B] uint8: where the inputs of a step that is replayed are built. tp: the ranks that record and replay alike.
    max_tokens, max_seqs: most tokens and rows of a step. max_pages: columns of a page table. context_length: most
    tokens of a row. Raises PluginError for impossible sizes.
    """

    def __init__(
        self,
        graphs: StepGraphs,
        model: CausalLM,
        attention: tuple[AttentionBackend, ...],
        kv: tuple[tuple[torch.Tensor, ...], ...],
        tp: Communicator,
        *,
        page_size: int,
        max_tokens: int,
        max_seqs: int,
        max_pages: int,
        context_length: int,
        device: torch.device,
    ) -> None:
        self.sizes = sizes = list(graphs.token_sizes)
        possible = min(max_tokens, max_seqs * context_length)
        if sizes != sorted(set(sizes)) or not 1 <= sizes[0] <= sizes[-1] <= possible:
            kind = type(graphs)
            raise PluginError(
                f"{kind.__module__}.{kind.__qualname__} records steps of {graphs.token_sizes} tokens in pieces; sizes "
                f"must grow and lie between 1 and {possible}, the most tokens of a step",
                hint="take EngineFacts.max_tokens, max_seqs and context_length into account in HardwareBackend.graphs",
            )
        most, groups = sizes[-1], len(attention)
        rows = min(max_seqs, most)
        self._table_bytes = min(groups * rows * max_pages * 4, _MOST_TABLE_BYTES)
        # Tokens: id, position, KV slots; rows: three indices, two lengths; each array is aligned.
        others = most * (16 + 8 * groups) + (rows + 1) * 32 + (7 + 2 * groups) * ALIGNMENT
        room = self._table_bytes + others + room_for(rows)
        self.buffer = torch.zeros(room, dtype=torch.uint8, device=device)
        self._slot_dtypes = [backend.capabilities.slot_dtype for backend in attention]
        self._page_size = page_size
        self._context_length = context_length
        self._agreement = Agreement(tp, device)
        self._graphs = graphs
        self._model = model
        self._attention = attention
        self._kv = kv
        self._recorded: set[int] = set()

    def size_for(self, plan: StepPlan) -> int:
        """Tokens to pad this step to; 0 if it is none that is replayed."""
        at = bisect_left(self.sizes, plan.num_tokens)
        num_pages = -(-int(plan.seq_lens.max()) // self._page_size)
        if at == len(self.sizes) or len(self._attention) * len(plan.slots) * num_pages * 4 > self._table_bytes:
            return 0
        size = self.sizes[at]
        if size not in self._recorded and self._graphs.on_demand:
            error = self._record(size)
            if error is not None:  # the step itself can still be launched
                logger.warning("steps of %d tokens cannot be recorded; they are launched", size, exc_info=error)
                self.sizes.remove(size)
        return size if size in self._recorded else 0

    def capture(self) -> None:
        """Record every size, largest first, unless that happens on demand. Raises what is wrong with one of them."""
        if not self._graphs.on_demand:
            for size in reversed(self.sizes):
                error = self._record(size)
                if error is not None:
                    raise error

    def run(self, batch: ForwardBatch, size: int) -> torch.Tensor:
        """Hidden states [size, D] of a step that was built in the buffer; valid until the next replay."""
        batch.plan_attention()
        return self._graphs.replay_pieces(size)

    def _record(self, size: int) -> Exception | None:
        """What is wrong with it, on any rank; None if it can be used."""
        batch = self._padding(size)
        launched: list[torch.Tensor] = []

        def capture() -> None:
            batch.plan_attention()
            launched.append(self._forward(batch, _at_once))  # what happens only once, such as compiling, happens now
            self._graphs.capture_pieces(size, partial(self._forward, batch))

        def compare() -> None:
            off = _difference(launched[0], self.run(batch, size))
            if not off <= _MOST_OFF:
                raise EngineError(
                    f"a step of {size} tokens that is replayed in pieces gives other hidden states than one that is "
                    f"launched: a row is off by {off:.1%}"
                )

        # A replay has collectives in it, for which every rank has to have recorded it.
        error = self._agreement.attempt(capture) or self._agreement.attempt(compare)
        if error is None:
            self._recorded.add(size)
        return error

    def _forward(self, batch: ForwardBatch, between: Between) -> torch.Tensor:
        pairs = zip(self._attention, batch.layouts, strict=True)
        attention = tuple(_Apart(backend, between, layout.slot_mapping) for backend, layout in pairs)
        return self._model.forward(replace(batch, attention=attention))

    def _padding(self, size: int) -> ForwardBatch:
        """Prompts of `size` tokens together in the null page, in the buffer.

        All tokens are the same one at the same position, so all keys and values are the same too: though many are
        stored in one slot, what is read there is defined, and every slot that is read was stored.
        """
        device = self.buffer.device
        ids, positions, mappings = token_views(self.buffer, size, self._slot_dtypes)
        lens = np.full(-(-size // self._context_length), self._context_length, np.int32)
        lens[-1] = size - int(lens[:-1].sum())
        starts = np.zeros(len(lens) + 1, np.int32)
        np.cumsum(lens, out=starts[1:])
        pages = np.zeros((len(lens), -(-int(lens.max()) // self._page_size)), np.int32)
        slots = (np.arange(size) - np.repeat(starts[:-1], lens)) % self._page_size
        self.buffer.zero_()
        ids.fill_(_PADDING_ID)
        for mapping in mappings:
            mapping.copy_(torch.from_numpy(slots))
        layouts = tuple(
            BatchLayout(
                page_size=self._page_size,
                num_decodes=0,
                q_lens=lens,
                seq_lens=lens,
                cu_q_lens=starts,
                page_table=pages,
                slot_mapping=mapping,
                device_page_table=torch.zeros(pages.shape, dtype=torch.int32, device=device),
                device_seq_lens=torch.from_numpy(lens).to(device),
                device_cu_q_lens=torch.from_numpy(starts).to(device),
            )
            for mapping in mappings
        )
        rows = torch.zeros(0, dtype=torch.int64, device=device)
        return ForwardBatch(ids, positions, rows, layouts, self._attention, self._kv)


def _at_once(call: Callable[..., None], result: torch.Tensor, *tensors: torch.Tensor) -> None:
    """`Between` of a step that is launched."""
    call(result, *tensors)


def _difference(want: torch.Tensor, got: torch.Tensor) -> float:
    """The largest of all rows' differences, as a share of the row's norm; infinite if not the same numbers are finite.
    Waits for the device."""
    want, got = want.float(), got.float()
    known = torch.isfinite(want)
    if not torch.equal(known, torch.isfinite(got)):
        return float("inf")
    want, got = want.where(known, 0.0), got.where(known, 0.0)
    return float(((want - got).norm(dim=1) / want.norm(dim=1).clamp(min=1e-6)).max())


class _Apart(AttentionBackend):
    """A backend's place in a recording: it runs between two pieces. slots [size]: where the recorded step's tokens
    belong in its cache, always the same tensor."""

    def __init__(self, backend: AttentionBackend, between: Between, slots: torch.Tensor) -> None:
        super().__init__(backend.config, backend.ctx)
        self._backend = backend
        self._between = between
        self._slots = slots

    def token_rows(self, kv: tuple[torch.Tensor, ...]) -> TokenRows | None:
        rows = self._backend.token_rows(kv)
        # A fused store is recorded, so it has to read the slots where every step has them.
        return rows if rows is not None and rows[2].data_ptr() == self._slots.data_ptr() else None

    def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
        return self._backend.allocate()

    def plan(self, layout: BatchLayout) -> None:
        self._backend.plan(layout)

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        result = q.new_empty(*q.shape[:-1], self.config.layers[layer].v_head_dim)
        backend = self._backend

        def call(result: torch.Tensor, q: torch.Tensor, *keys_and_values: torch.Tensor) -> None:
            k, v = keys_and_values or (None, None)
            result.copy_(backend.run(q, k, v, layer, kv, sinks))

        given = () if k is None or v is None else (k, v)
        self._between(call, result, q, *given)
        return result

    def run_mla(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        weights: MlaWeights,
        layer: int,
        kv: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        result = q_nope.new_empty(*q_nope.shape[:-1], weights.value.shape[1])
        backend = self._backend

        def call(
            result: torch.Tensor,
            q_nope: torch.Tensor,
            q_rope: torch.Tensor,
            latent: torch.Tensor,
            k_rope: torch.Tensor,
        ) -> None:
            result.copy_(backend.run_mla(q_nope, q_rope, latent, k_rope, weights, layer, kv))

        self._between(call, result, q_nope, q_rope, latent, k_rope)
        return result
