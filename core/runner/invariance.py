"""Whether a request gets the same bits alone and in company, tried at start on the model as it is loaded.

One request's tokens and log-probabilities, computed alone in one piece, against the same request cut into chunks amid
others: greedy and drawn, other rows before and behind it. It is no proof, but a kernel that minds its neighbours is
found here, and not by a user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.interfaces.errors import ConfigError, EngineError
from core.interfaces.params import SamplingParams
from core.interfaces.step import Admission, StepPlan, StepResult
from core.runner.runner import ModelRunner

Int32 = npt.NDArray[np.int32]
LENGTHS = (37, 21, 5, 40, 18)  # of prompts; the first one's request is looked at
NUM_DECODES = 3
CHUNKS = (5, 18, 14)  # that the first prompt is cut into in company
NUM_LOGPROBS = 5


@dataclass(slots=True)
class _Row:
    """A request: tokens [n], its slot and its pages."""

    tokens: list[int]
    num_prompt: int
    slot: int
    pages: list[int]
    computed: int = 0


def check_invariance(runner: ModelRunner, num_pages: int, seed: int = 0) -> None:
    """Raises ConfigError if company changes a bit. Before `warm_up`, while no page holds anything."""
    config = runner.config
    room = min(config.context_length, config.chunk_tokens) - NUM_DECODES - 1
    lengths = [min(length, room) for length in LENGTHS]
    per_row = -(-(max(lengths) + NUM_DECODES) // config.page_size)
    count = min(len(lengths), config.max_running, (num_pages - 1) // per_row)
    if count < 2 or room < sum(CHUNKS):
        return  # nobody can ever be in company here, or hardly
    generator = np.random.default_rng(seed)
    prompts = [generator.integers(0, config.spec.vocab_size, length).tolist() for length in lengths[:count]]
    for temperature in (0.0, 0.8):
        sampling = SamplingParams(temperature=temperature, top_k=20, top_p=0.9, logprobs=NUM_LOGPROBS)
        alone = _Run(runner, prompts[:1], [0], per_row, sampling).in_one_piece()
        slots = [count // 2, *(slot for slot in range(count) if slot != count // 2)]
        together = _Run(runner, prompts, slots, per_row, sampling).in_company()
        for step, (mine, theirs) in enumerate(zip(alone, together, strict=True)):
            if mine != theirs:
                raise ConfigError(
                    f"deterministic: token {step} of a request has other bits in a batch of {count} than alone "
                    f"(attention {', '.join(kind.__name__ for kind in config.attention)}, {config.dtype})",
                    field="engine.deterministic",
                    value=True,
                    hint="another --dtype, --cpu-threads 1 or --device may do, or leave --deterministic out",
                )


class _Run:
    """Steps over requests of its own."""

    def __init__(
        self, runner: ModelRunner, prompts: list[list[int]], slots: list[int], per_row: int, sampling: SamplingParams
    ) -> None:
        self._runner = runner
        self._sampling = sampling
        self._rows = [
            _Row(list(prompt), len(prompt), slot, list(range(1 + i * per_row, 1 + (i + 1) * per_row)))
            for i, (prompt, slot) in enumerate(zip(prompts, slots, strict=True))
        ]
        self._found: list[tuple[int, float, bytes]] = []
        self._step = 0

    def in_one_piece(self) -> list[tuple[int, float, bytes]]:
        """What the first request gets: (token, its log-probability, bits of the best)."""
        first = self._rows[0]
        self._run([(first, first.num_prompt)])
        return self._decode([first])

    def in_company(self) -> list[tuple[int, float, bytes]]:
        """The same, the prompt in chunks, while others begin and decode."""
        first, *others = self._rows
        begun: list[_Row] = []
        budget = self._runner.config.chunk_tokens
        for at, chunk in enumerate(CHUNKS):
            chunk = min(chunk, first.num_prompt - first.computed) if at + 1 < len(CHUNKS) else 0
            work = [(row, 1) for row in begun]
            chunk = chunk or first.num_prompt - first.computed
            left = budget - len(work) - chunk
            for row in [row for row in others if row not in begun][: -(-len(others) // len(CHUNKS))]:
                if row.num_prompt <= left:
                    work.append((row, row.num_prompt))
                    begun.append(row)
                    left -= row.num_prompt
            # Prefills behind the decodes; the first request's not in front of them.
            self._run([*work, (first, chunk)])
        return self._decode([*begun[: len(begun) // 2], first, *begun[len(begun) // 2 :]])

    def _decode(self, rows: list[_Row]) -> list[tuple[int, float, bytes]]:
        for _ in range(NUM_DECODES):
            self._run([(row, 1) for row in rows])
        return self._found

    def _run(self, work: list[tuple[_Row, int]]) -> None:
        """One step: (request, tokens to compute) each, decodes first."""
        num_decodes = next((i for i, (row, _) in enumerate(work) if row.computed < row.num_prompt), len(work))
        admitted = [row for row, _ in work if not row.computed]
        for row, num in work:
            row.computed += num
        plan = StepPlan(
            self._step,
            np.array([row.slot for row, _ in work], np.int32),
            num_decodes,
            np.array([num for _, num in work], np.int32),
            np.array([row.computed for row, _ in work], np.int32),
            np.array([row.computed >= row.num_prompt for row, _ in work], np.bool_),
            [
                Admission(row.slot, row.slot, np.array(row.tokens, np.int32), row.num_prompt, self._sampling, 7)
                for row in admitted
            ],
        )
        num_pages = len(self._rows[0].pages)
        groups = len(self._runner.config.spec.cache_groups)
        plan.page_slots = np.repeat([row.slot for row in admitted], num_pages).astype(np.int32)
        plan.page_index = np.tile(np.arange(num_pages), len(admitted)).astype(np.int32)
        pages = np.array([row.pages for row in admitted], np.int32).reshape(-1)
        plan.page_ids = np.tile(pages, (groups, 1))
        self._step += 1
        self._take(plan, self._runner.launch(plan).wait())

    def _take(self, plan: StepPlan, result: StepResult) -> None:
        if result.error is not None:
            raise EngineError(f"the step that tries whether results depend on the batch failed: {result.error}")
        mine = np.flatnonzero(result.slots == self._rows[0].slot)
        if len(mine):
            assert result.logprobs is not None
            row = int(mine[0])
            bits = result.logprobs.top[row].tobytes() + result.logprobs.top_ids[row].tobytes()
            self._found.append((int(result.tokens[row, 0]), float(result.logprobs.chosen[row]), bits))
