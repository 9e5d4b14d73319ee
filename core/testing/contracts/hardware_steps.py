"""Steps of the mock model on a device, planned by hand: a prefill, then decodes alone."""

from __future__ import annotations

import numpy as np

from core.interfaces.params import SamplingParams
from core.interfaces.step import Admission, StepPlan
from core.runner.runner import ModelRunner


def decode_plans(runner: ModelRunner, prompts: list[list[int]], num_steps: int) -> list[StepPlan]:
    """All prompts at once in slots 0, 1, ..., then `num_steps - 1` decodes of them all; pages are given out in the
    first step."""
    lens = np.array([len(prompt) for prompt in prompts], np.int32)
    slots, samples = np.arange(len(prompts), dtype=np.int32), np.ones(len(prompts), np.bool_)
    greedy = SamplingParams(temperature=0.0)
    plans = [StepPlan(0, slots, 0, lens, lens, samples)]
    for slot, prompt in enumerate(prompts):
        plans[0].admissions.append(Admission(slot, slot, np.array(prompt, np.int32), len(prompt), greedy, 0))
    for step in range(1, num_steps):
        plans.append(StepPlan(step, slots, len(prompts), np.ones_like(lens), lens + step, samples))
    pages = -(-(int(lens.max()) + num_steps) // runner.config.page_size)
    ids = 1 + np.arange(len(prompts) * pages, dtype=np.int32)
    plans[0].page_slots = np.repeat(slots, pages)
    plans[0].page_index = np.tile(np.arange(pages, dtype=np.int32), len(prompts))
    plans[0].page_ids = np.tile(ids, (len(runner.config.spec.cache_groups), 1))
    return plans


def decode_all(runner: ModelRunner, prompts: list[list[int]], num_steps: int) -> list[list[int]]:
    """The greedy tokens of each prompt. Before every step the null page, which padding rows write and read, holds
    not-a-number in every buffer of one row a slot."""
    tokens: list[list[int]] = [[] for _ in prompts]
    for plan in decode_plans(runner, prompts, num_steps):
        for buffers in runner._kv:
            for buffer in buffers:
                buffer[: runner.config.page_size] = float("nan")
        result = runner.launch(plan).wait()
        assert result.error is None, result.error
        for row, token in enumerate(result.tokens[:, 0].tolist()):
            tokens[row].append(token)
    return tokens
