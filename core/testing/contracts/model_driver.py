"""Driving a model through core's own runner, and looking at the logits of every token on the way.

`ModelDriver` plays the scheduler: it admits sequences to slots, gives out pages in random order, cuts prompts into
chunks, shares prefixes, and launches plans. Tokens of decode rows are those that the runner sampled (greedily).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from core.attention.torch_native import TorchNativeAttention
from core.interfaces.attention import AttentionBackend
from core.interfaces.batch import ForwardBatch
from core.interfaces.context import PluginContext
from core.interfaces.model import CausalLM, ModelArch, ScoringModel
from core.interfaces.params import SamplingParams
from core.interfaces.quant import QuantMethod
from core.interfaces.spec import ModelSpec
from core.interfaces.step import Admission, StepPlan
from core.layers.moe import TorchNativeMoe
from core.layers.unquantized import Unquantized
from core.ops.reference import REFERENCES
from core.runner.config import RunnerConfig
from core.runner.runner import ModelRunner
from core.testing.mock_hardware import MockHardware
from core.testing.mock_runner import SingleRank

_NEVER = -1e9  # logit of a token that stands for no label or element
POISON = 1e3  # what pages hold before they are written; large, and finite so that a masked key adds nothing


class ThreadRank:
    """One rank of a group of threads that exchange tensors at a barrier: a communicator without processes."""

    def __init__(self, rank: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(slots)
        self.slots, self.barrier = slots, barrier

    def _exchange(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.slots[self.rank] = x
        self.barrier.wait(60)
        everyone = list(self.slots)
        self.barrier.wait(60)
        return everyone

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._exchange(x)).sum(0)

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return torch.cat(self._exchange(x), dim)


def run_ranks(size: int, work: Callable[[ThreadRank], Any]) -> list[Any]:
    """`work` on each of `size` ranks, in threads; their results. The first error of any rank is raised."""
    slots: list[Any] = [None] * size
    barrier = threading.Barrier(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRank(rank, slots, barrier))
        except Exception as error:
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [result for result in results if isinstance(result, Exception)]
    # A rank that waits for a broken one fails as well; the cause goes first.
    errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if errors:
        raise errors[0]
    return results


def num_logits(spec: ModelSpec) -> int:
    """What the model's head gives of a hidden state, which without a head is the state itself."""
    return {"classify": len(spec.labels), "embed": spec.hidden_size}.get(spec.task, spec.vocab_size)


class _Recorder:
    """The model as the runner sees it; keeps the logits of all rows of the last step. Of a classifier these are its
    scores, and without a head the hidden states; the largest is the token that the model seems to generate."""

    def __init__(self, model: CausalLM, spec: ModelSpec) -> None:
        self.model, self.spec = model, spec
        self.logits = torch.empty(0)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        hidden = self.model.forward(batch)
        wanted = (len(batch.input_ids), self.spec.hidden_size)
        assert tuple(hidden.shape) == wanted, f"forward returns {tuple(hidden.shape)}, not [T, hidden_size] = {wanted}"
        self.logits = self._head(hidden)
        wanted = (len(batch.input_ids), num_logits(self.spec))
        assert tuple(self.logits.shape) == wanted, (
            f"the head returns {tuple(self.logits.shape)}, not [S, vocab_size or number of labels] = {wanted}"
        )
        return hidden

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.spec.task == "embed":
            return hidden
        if self.spec.task == "classify":
            return cast(ScoringModel, self.model).compute_scores(hidden)
        return self.model.compute_logits(hidden)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        values = self._head(hidden)[:, : self.spec.vocab_size]
        return torch.nn.functional.pad(values, (0, self.spec.vocab_size - values.shape[1]), value=_NEVER)


class _RecordingHardware(MockHardware):
    recorder: _Recorder

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec

    def prepare_model(self, model: CausalLM) -> CausalLM:
        self.recorder = _Recorder(model, self.spec)
        return self.recorder


def poisoned(backend: type[AttentionBackend]) -> type[AttentionBackend]:
    """`backend` with pages that hold large numbers before they are written, so that reading one too many shows."""

    class Poisoned(backend):  # type: ignore[valid-type, misc]
        def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
            buffers: dict[int, tuple[torch.Tensor, ...]] = super().allocate()
            for tensors in buffers.values():
                for tensor in tensors:
                    if tensor.is_floating_point():
                        tensor.fill_(POISON)
            return buffers

    Poisoned.__name__ = backend.__name__
    return Poisoned


@dataclass
class Sequence:
    """One request. tokens: its prompt, then what was sampled. computed: how many of them are in the cache.
    pages[g]: its pages in cache group g."""

    slot: int
    tokens: list[int]
    num_prompt: int
    pages: list[list[int]]
    computed: int = 0
    admitted: bool = False

    @property
    def decodes(self) -> bool:
        return self.computed >= self.num_prompt


@dataclass(frozen=True)
class DriverOptions:
    """page_size: tokens a page. tp: this rank's communicator. attention: backend of every cache group. quant: method;
    None is unquantized. max_running: slots. context_length: None for the spec's, at most 512."""

    page_size: int = 4
    num_pages: int = 200
    max_running: int = 16
    context_length: int | None = None
    dtype: torch.dtype = torch.float32
    tp: Any = field(default_factory=SingleRank)
    attention: type[AttentionBackend] = TorchNativeAttention
    quant: QuantMethod | None = None
    ops: Mapping[str, Callable[..., Any]] = field(default_factory=lambda: REFERENCES)
    seed: int = 0


class ModelDriver:
    """`arch` with the weights of the checkpoint in `folder`, loaded and run by a ModelRunner on the CPU."""

    def __init__(
        self, arch: type[ModelArch], spec: ModelSpec, folder: Path, options: DriverOptions | None = None
    ) -> None:
        options = options or DriverOptions()
        self.spec, self.options = spec, options
        hardware = _RecordingHardware(spec)
        context = PluginContext(device=torch.device("cpu"))
        self.runner = ModelRunner(
            RunnerConfig(
                spec=spec,
                arch=arch,
                quant=options.quant or Unquantized(None, context),
                moe=TorchNativeMoe(context),
                ops=options.ops,
                attention=(poisoned(options.attention),) * len(spec.cache_groups),
                tp=options.tp,
                dtype=options.dtype,
                page_size=options.page_size,
                max_running=options.max_running,
                chunk_tokens=512,
                context_length=options.context_length or min(spec.context_length, 512),
                checkpoint=folder,
                load_threads=1,
            ),
            hardware,
        )
        self.report = self.runner.load()
        self.runner.allocate(options.num_pages)
        self.recorder = hardware.recorder
        self.random = random.Random(options.seed)
        self.free_slots = list(range(options.max_running))
        self.free_pages = [list(range(1, options.num_pages)) for _ in spec.cache_groups]  # page 0 is the null page
        for free in (self.free_slots, *self.free_pages):
            self.random.shuffle(free)
        self.steps = 0

    def tokens(self, count: int) -> list[int]:
        return [self.random.randrange(self.spec.vocab_size) for _ in range(count)]

    def start(self, prompt: list[int], *, parent: Sequence | None = None, shared_pages: int = 0) -> Sequence:
        """A new sequence; with a `parent`, its first pages are the parent's first `shared_pages`, as after a hit in a
        prefix cache."""
        pages: list[list[int]] = [[] for _ in self.free_pages]
        computed = shared_pages * self.options.page_size
        if parent is not None:
            assert prompt[:computed] == parent.tokens[:computed]
            assert parent.computed >= computed
            pages = [own[:shared_pages] for own in parent.pages]
        return Sequence(self.free_slots.pop(), list(prompt), len(prompt), pages, computed)

    def stop(self, seq: Sequence) -> None:
        """The sequence's slot may be used again; its pages stay, they may be shared."""
        self.free_slots.append(seq.slot)

    def step(self, rows: list[tuple[Sequence, int]]) -> list[torch.Tensor]:
        """One step: (sequence, number of its tokens to compute). Returns logits [tokens, vocab_size] of each row, and
        appends a sampled token to every sequence whose prompt is done."""
        ordered = sorted(rows, key=lambda row: not row[0].decodes)  # decodes first; stable
        admissions, updates = [], []
        for seq, count in ordered:
            fresh_row = not seq.admitted
            for index in range(len(seq.pages[0]) if seq.pages else 0):
                if fresh_row:
                    updates.append((seq.slot, index, [own[index] for own in seq.pages]))
            if fresh_row:
                ids = np.array(seq.tokens, np.int32)
                greedy = SamplingParams(temperature=0.0)
                admissions.append(Admission(seq.slot, seq.slot, ids, seq.num_prompt, greedy, 0))
                seq.admitted = True
            while seq.pages and len(seq.pages[0]) * self.options.page_size < seq.computed + count:
                new = [free.pop() for free in self.free_pages]
                updates.append((seq.slot, len(seq.pages[0]), new))
                for own, page in zip(seq.pages, new, strict=True):
                    own.append(page)
        num_decodes = sum(seq.decodes for seq, _ in ordered)
        for seq, count in ordered:
            assert not seq.decodes or count == 1
            seq.computed += count
        plan = StepPlan(
            step=self.steps,
            slots=np.array([seq.slot for seq, _ in ordered], np.int32),
            num_decodes=num_decodes,
            q_lens=np.array([count for _, count in ordered], np.int32),
            seq_lens=np.array([seq.computed for seq, _ in ordered], np.int32),
            samples=np.array([seq.decodes for seq, _ in ordered]),
            admissions=admissions,
            page_slots=np.array([slot for slot, _, _ in updates], np.int32),
            page_index=np.array([index for _, index, _ in updates], np.int32),
            page_ids=np.array([ids for _, _, ids in updates], np.int32).reshape(-1, len(self.free_pages)).T,
        )
        self.steps += 1
        result = self.runner.launch(plan).wait()
        assert result.error is None, f"the step failed: {result.error}"
        assert not result.failed.any(), "logits are not finite"
        by_slot = dict(zip(result.slots.tolist(), result.tokens[:, 0].tolist(), strict=True))
        for seq, _ in ordered:
            if seq.slot in by_slot:
                seq.tokens.append(by_slot[seq.slot])
        pieces = self.recorder.logits.float().split([count for _, count in ordered])
        by_seq = {seq.slot: piece for (seq, _), piece in zip(ordered, pieces, strict=True)}
        return [by_seq[seq.slot] for seq, _ in rows]

    def run(self, seq: Sequence, chunks: list[int]) -> torch.Tensor:
        """Steps of one sequence alone; the logits of all of its new tokens."""
        return torch.cat([self.step([(seq, count)])[0] for count in chunks])
