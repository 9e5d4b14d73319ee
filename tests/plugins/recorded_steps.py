"""Decode steps recorded once and replayed, the way core's runner does it, in a world of the attention suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from core.interfaces.batch import BatchLayout
from core.interfaces.hardware import StepGraphs
from core.testing.contracts.attention_world import Outcome, World


class CudaGraphs(StepGraphs):
    """The plainest recorder: one CUDA graph for each size and variant."""

    def __init__(self) -> None:
        self._recorded: dict[tuple[int, tuple[int, ...]], tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...]]] = {}

    def capture(self, size: int, run: Callable[[], tuple[torch.Tensor, ...]], variants: tuple[int, ...] = ()) -> None:
        run()  # what happens only once happens here
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        self._recorded[size, variants] = graph, out

    def replay(self, size: int, variants: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
        graph, out = self._recorded[size, variants]
        graph.replay()
        return out


class RecordedSteps:
    """Steps of `size` rows, each layer's attention recorded one after the other. max_pages: of a sequence."""

    def __init__(self, world: World, graphs: StepGraphs, size: int, max_pages: int) -> None:
        self.world, self.graphs, self.size = world, graphs, size
        device = world.config.device

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.layout = BatchLayout(
            page_size=world.config.page_size,
            num_decodes=size,
            q_lens=np.ones(size, np.int32),
            seq_lens=np.ones(size, np.int32),
            cu_q_lens=np.arange(size + 1, dtype=np.int32),
            page_table=np.zeros((size, 1), np.int32),
            slot_mapping=zeros(size, dtype=getattr(torch, world.backend.capabilities.slot_dtype)),
            device_page_table=zeros(size, max_pages, dtype=torch.int32),
            device_seq_lens=torch.ones(size, dtype=torch.int32, device=device),
            device_cu_q_lens=torch.arange(size + 1, dtype=torch.int32, device=device),
            captured=True,
        )
        self.inputs = {layer: world.inputs(layer, size) for layer in world.config.layers}
        self.recorded: list[int] = []  # variants, as they were asked for
        assert self._plan() == 0, "padding rows alone are variant 0"

    def _plan(self) -> int:
        """Plan the layout as it stands, and record it if that is the first of its variant."""
        backend, layout = self.world.backend, self.layout
        layout.variant = backend.variant(layout)
        backend.plan(layout)
        if layout.variant not in self.recorded:
            self.graphs.capture(self.size, self._run, (layout.variant,))
            self.recorded.append(layout.variant)
        return layout.variant

    def _run(self) -> tuple[torch.Tensor, ...]:
        return (torch.stack([self.world.run(layer, inputs) for layer, inputs in self.inputs.items()]),)

    def step(self, numbers: Sequence[int]) -> list[Outcome]:
        """One token for each of these sequences; the other rows are padding."""
        world, kept = self.world, self.layout
        work = [(number, 1) for number in numbers]
        given, rows = world.layout(work), len(numbers)
        assert kept.device_page_table is not None
        assert kept.device_seq_lens is not None
        assert given.device_page_table is not None
        assert given.device_seq_lens is not None
        kept.slot_mapping.zero_()
        kept.slot_mapping[:rows].copy_(given.slot_mapping)
        kept.device_page_table[rows:].zero_()
        # Columns past this step's keep the numbers of earlier ones.
        kept.device_page_table[:rows, : given.device_page_table.shape[1]].copy_(given.device_page_table)
        kept.device_seq_lens.fill_(1)
        kept.device_seq_lens[:rows].copy_(given.device_seq_lens)
        seq_lens = np.ones(self.size, np.int32)
        seq_lens[:rows] = given.seq_lens
        table = np.zeros((self.size, given.page_table.shape[1]), np.int32)
        table[:rows] = given.page_table
        kept.seq_lens, kept.page_table = seq_lens, table
        fresh = {layer: world.inputs(layer, self.size) for layer in world.config.layers}
        for layer, inputs in fresh.items():
            for mine, new in zip(self.inputs[layer], inputs, strict=True):
                mine.copy_(new)
        variant = self._plan()
        out = self.graphs.replay(self.size, (variant,))[0].clone()
        return [
            Outcome(layer, out[index, :rows], world.remember(layer, work, [x[:rows] for x in fresh[layer]]))
            for index, layer in enumerate(world.config.layers)
        ]
