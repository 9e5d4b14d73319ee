"""Extras among recorded steps, masks and chunks, on the mock model, whose hidden states can be counted by hand."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from core.interfaces.params import PoolingParams, SamplingParams
from core.interfaces.step import Admission, RowExtras, StepPlan, StepResult, TokenMasks
from core.runner import extras
from core.runner.runner import ModelRunner
from core.testing.capturable_attention import CapturableAttention
from core.testing.dense_attention import DenseAttention
from core.testing.mock_graphs import MockGraphHardware
from core.testing.mock_model import MockConfig, reference_greedy, reference_logits
from core.testing.mock_runner import build_mock_runner

CONFIG = MockConfig(vocab_size=97, windows=(None, 5), context_length=64)
GREEDY = SamplingParams(temperature=0.0)
PAGE = 4


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def admission(slot: int, tokens: list[int], sampling: SamplingParams = GREEDY, **fields: Any) -> Admission:
    return Admission(slot, slot, np.array(tokens, np.int32), len(tokens), sampling, 0, **fields)


def step(
    runner: ModelRunner,
    rows: list[tuple[int, int, int, bool]],
    admissions: list[Admission] | None = None,
    num_decodes: int = 0,
    masks: TokenMasks | None = None,
) -> StepResult:
    """rows: (slot, new tokens, length with them, sampled). Each slot has the pages of its own number."""
    slots, q_lens, seq_lens, samples = zip(*rows, strict=True)
    admitted = [item.slot for item in admissions or []]
    per_slot = 64 // PAGE
    groups = len(CONFIG.windows)
    page_slots = np.repeat(np.array(admitted, np.int32), per_slot)
    page_index = np.tile(np.arange(per_slot, dtype=np.int32), len(admitted))
    plan = StepPlan(
        step=0,
        slots=np.array(slots, np.int32),
        num_decodes=num_decodes,
        q_lens=np.array(q_lens, np.int32),
        seq_lens=np.array(seq_lens, np.int32),
        samples=np.array(samples),
        admissions=admissions or [],
        page_slots=page_slots,
        page_index=page_index,
        page_ids=np.tile(1 + page_slots * per_slot + page_index, (groups, 1)).astype(np.int32),
        masked=masks is not None,
    )
    running = runner.launch(plan)
    if masks is not None:
        running.sample(masks)
    result = running.wait()
    assert result.error is None
    return result


def make(graphs: bool) -> tuple[ModelRunner, MockGraphHardware | None]:
    hardware = MockGraphHardware() if graphs else None
    attention = CapturableAttention if graphs else DenseAttention
    runner = build_mock_runner(CONFIG, hardware=hardware, max_running=6, page_size=PAGE, attention=attention)
    runner.warm_up()
    return runner, hardware


def ids(count: int, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(CONFIG.vocab_size) for _ in range(count)]


def vector_of(result: StepResult, slot: int) -> np.ndarray:
    found = result.extras[slot].pooled
    assert found is not None
    return found


def check_logprobs(row: RowExtras, prompt: list[int], start: int, stop: int, num_top: int) -> None:
    values = row.prompt_logprobs
    assert values is not None
    assert (row.prompt_start, len(values.chosen)) == (start, stop - start)
    for at, position in enumerate(range(start, stop)):
        wanted = log_softmax(reference_logits(CONFIG, prompt[:position]).astype(np.float32))
        assert values.chosen[at] == pytest.approx(wanted[prompt[position]], abs=1e-4)
        np.testing.assert_allclose(values.top[at], np.sort(wanted)[::-1][:num_top], atol=1e-4)


def test_recorded_steps_give_the_same_extras() -> None:
    """Rows with hidden states and plain ones, in a step padded to four rows; with a pooled row of one token it is
    launched."""
    prompts = {slot: ids(9 + slot, slot) for slot in range(4)}
    results = []
    for graphs in (False, True):
        runner, hardware = make(graphs)
        asks = [
            admission(0, prompts[0], pooling=PoolingParams()),
            admission(1, prompts[1], SamplingParams(temperature=0.0, hidden_states="last")),
            admission(2, prompts[2]),
            admission(3, prompts[3]),
        ]
        # All but the last token of the pooled prompt first, as a prefix that is cached.
        step(runner, [(0, 8, 8, False), (1, 10, 10, True), (2, 11, 11, True), (3, 12, 12, True)], asks)
        replays = [sum(hardware.made.replays.values()) if hardware else 0]
        rows = [(0, 1, 9, True), (1, 1, 11, True), (2, 1, 12, True), (3, 1, 13, True)]
        for these in (rows, [(slot, 1, length + 1, True) for slot, _, length, _ in rows[1:]]):
            results.append(step(runner, these, num_decodes=len(these)))
            replays.append(sum(hardware.made.replays.values()) if hardware else 0)
        assert replays[1] == replays[0]
        assert replays[2] == replays[1] + (1 if graphs else 0)
    for eager, recorded, slots in ((results[0], results[2], [0, 1]), (results[1], results[3], [1])):
        assert eager.tokens.tolist() == recorded.tokens.tolist()
        assert [*eager.extras] == [*recorded.extras]
        assert sorted(eager.extras) == slots
        for slot in slots:
            for name in ("pooled", "hidden"):
                np.testing.assert_array_equal(getattr(eager.extras[slot], name), getattr(recorded.extras[slot], name))
    for at, slot in enumerate((1, 2, 3)):
        first, second = results[2].tokens[at + 1, 0], results[3].tokens[at, 0]
        assert [first, second] == reference_greedy(CONFIG, prompts[slot], 3)[1:]


def test_masks_find_their_rows_beside_pooled_ones() -> None:
    runner, _ = make(False)
    prompts = {slot: ids(6, 10 + slot) for slot in range(4)}
    asks = [
        admission(0, prompts[0], pooling=PoolingParams()),
        admission(1, prompts[1]),
        admission(2, prompts[2], pooling=PoolingParams(pooling="mean")),
        admission(3, prompts[3], SamplingParams(temperature=0.0, logprobs=1)),
    ]
    words = np.zeros((1, 4), np.uint32)
    words[0, 50 // 32] = 1 << (50 % 32)
    masks = TokenMasks(np.array([3], np.int32), words)  # the fourth sampled row may have token 50 alone
    result = step(runner, [(slot, 6, 6, True) for slot in range(4)], asks, masks=masks)
    free = int(reference_logits(CONFIG, prompts[1]).astype(np.float32).argmax())
    assert result.tokens[:, 0].tolist() == [0, free, 0, 50]
    assert result.logprobs is not None
    assert np.isnan(result.logprobs.chosen[:3]).all()
    wanted = log_softmax(reference_logits(CONFIG, prompts[3]).astype(np.float32))
    assert result.logprobs.chosen[3] == pytest.approx(wanted[50], abs=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
@pytest.mark.parametrize("chunks", [[13], [5, 8], [1] * 13, [12, 1]])
def test_pooling_over_chunks(pooling: Any, chunks: list[int]) -> None:
    runner, _ = make(False)
    prompt = ids(13, 3)
    whole = step(
        runner, [(0, 13, 13, True)], [admission(0, prompt, SamplingParams(temperature=0.0, hidden_states="all"))]
    )
    states = whole.extras[0].hidden
    assert states is not None
    wanted = {"last": states[-1], "first": states[0], "mean": states.mean(0)}[pooling]
    done = 0
    asks = [admission(1, prompt, pooling=PoolingParams(pooling=pooling))]
    for count in chunks:
        done += count
        result = step(runner, [(1, count, done, done == 13)], asks)
        asks = []
        assert (1 in result.extras) == (done == 13)
    np.testing.assert_allclose(vector_of(result, 1), wanted, rtol=1e-6)
    assert not result.failed.any()


def test_a_slot_forgets_what_it_pooled() -> None:
    """A prompt that is given up half way, and another in its slot: also one that begins anew after a preemption."""
    runner, _ = make(False)
    first, second = ids(12, 1), ids(9, 2)
    mean = PoolingParams(pooling="mean")
    step(runner, [(0, 7, 7, False)], [admission(0, first, pooling=mean)])
    step(runner, [(0, 4, 4, False)], [admission(0, second, pooling=mean)])
    mixed = step(runner, [(0, 5, 9, True)])
    alone = step(runner, [(1, 9, 9, True)], [admission(1, second, pooling=mean)])
    np.testing.assert_allclose(vector_of(mixed, 0), vector_of(alone, 1), rtol=1e-6)
    step(runner, [(0, 4, 4, True)], [admission(0, second[:4])])
    assert not step(runner, [(0, 1, 5, True)], num_decodes=1).extras


def test_next_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that ask for different numbers of tokens, in pieces of few rows."""
    monkeypatch.setattr(extras, "LOGITS_ELEMENTS", 2 * CONFIG.vocab_size)
    runner, _ = make(False)
    prompts = {slot: ids(4 + slot, 30 + slot) for slot in range(5)}
    tokens: dict[int, tuple[int, ...]] = {0: (3,), 1: (4, 5, 96), 2: (0,), 3: (9, 8), 4: (7,)}
    asks = [admission(s, prompts[s], pooling=PoolingParams(head="tokens", tokens=tokens[s])) for s in prompts]
    result = step(runner, [(s, 4 + s, 4 + s, True) for s in prompts], asks)
    for slot, prompt in prompts.items():
        wanted = log_softmax(reference_logits(CONFIG, prompt).astype(np.float32))[list(tokens[slot])]
        np.testing.assert_allclose(vector_of(result, slot), wanted, atol=1e-4)


def test_prompt_logprobs_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last position of a chunk tells of the first token of the next."""
    monkeypatch.setattr(extras, "LOGITS_ELEMENTS", 3 * CONFIG.vocab_size)
    runner, _ = make(False)
    prompt = ids(14, 8)
    asks = [
        admission(0, prompt, SamplingParams(temperature=0.0, prompt_logprobs=2)),
        admission(1, prompt, SamplingParams(temperature=0.0, prompt_logprobs=0, prompt_logprobs_start=6)),
    ]
    first = step(runner, [(0, 5, 5, False), (1, 5, 5, False)], asks)
    check_logprobs(first.extras[0], prompt, 1, 6, 2)
    assert 1 not in first.extras
    second = step(runner, [(0, 9, 14, True), (1, 9, 14, True)])
    check_logprobs(second.extras[0], prompt, 6, 14, 2)
    check_logprobs(second.extras[1], prompt, 6, 14, 0)
    assert not step(runner, [(0, 1, 15, True), (1, 1, 15, True)], num_decodes=2).extras


def test_a_vector_that_is_not_finite_fails_its_row() -> None:
    runner, _ = make(False)
    forward = runner._forward
    assert forward is not None

    def broken(batch: Any) -> torch.Tensor:
        hidden = forward(batch)
        hidden[1] = float("nan")
        return hidden

    runner._forward = broken
    asks = [admission(slot, [5], pooling=PoolingParams()) for slot in range(3)]
    assert step(runner, [(slot, 1, 1, True) for slot in range(3)], asks).failed.tolist() == [False, True, False]
