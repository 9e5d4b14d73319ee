"""Steps of the engine: nothing waits for the device but the end of a step, and little is copied."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from core.engine.client import EngineRequest
from core.interfaces.params import SamplingParams
from tests.gpu.engines import ON_CPU, Built, demo_prompts, engine, gpu_only, need_attention, say
from tests.gpu.watching import WARNING, copies, waits

SIZES = {"max_running_requests": 16, "max_total_tokens": 16384, "context_length": 1024, "chunked_prefill_size": 512}
GREEDY = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)
KINDS = {
    "greedy": GREEDY,
    "drawn": SamplingParams(temperature=0.8, max_tokens=48, ignore_eos=True),
    "filtered": SamplingParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, max_tokens=48, ignore_eos=True),
    "penalties": SamplingParams(
        temperature=0.7, presence_penalty=0.2, repetition_penalty=1.1, logprobs=2, min_tokens=2, max_tokens=48,
        ignore_eos=True,
    ),
}  # fmt: skip
BACKENDS = [("triton", "float32"), ("triton", "bfloat16"), ("fa3", "bfloat16"), ("flashinfer", "bfloat16")]
if ON_CPU:
    BACKENDS = BACKENDS[:1]
NUM_STEPS = 24
# Copies up of a decode step: its inputs, and with them keys and temperatures of rows that are drawn, limits of those
# with filters, factors of those with penalties.
COPIES_UP = {"greedy": 1, "drawn": 1, "filtered": 1, "penalties": 1}


def begin(made: Built, params: SamplingParams, count: int = 5) -> None:
    """Requests of many lengths, brought into steady decoding."""
    for index, prompt in enumerate(demo_prompts()[:count]):
        request = EngineRequest(np.array(prompt, np.int32), params, seed=index)
        made.engine.engine.submit(made.engine._message(next(made.engine._ids), request))
    for _ in range(12):
        turn(made)


def turn(made: Built) -> None:
    for outputs in made.engine.engine.step() or ():
        assert not outputs.errors, outputs.errors


def end(made: Built) -> None:
    while made.engine.engine.has_work:
        turn(made)


def test_a_wait_would_be_seen(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other tests rely on."""
    with waits(monkeypatch) as found:
        total = torch.ones(3, device=device).sum()
        if ON_CPU:
            warnings.warn(WARNING, stacklevel=1)
        assert total.item() == 3
        if not ON_CPU:
            torch.cuda.synchronize()
    assert len(found.places) >= 1
    assert ON_CPU or found.calls["device"] == 1
    with copies(monkeypatch) as counted:
        torch.ones(5).to(device)
    assert ON_CPU or counted.up == 1, counted


@pytest.mark.parametrize(("attention", "dtype"), BACKENDS)
def test_nothing_waits_but_the_end_of_a_step(attention: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = need_attention(attention)
    with engine(dtype=dtype, attention_backend=name, prefix_cache="none", **SIZES) as made:
        for kind, params in KINDS.items():
            for _ in range(2):  # the first time, kernels are loaded and tables made
                begin(made, params)
                end(made)
            begin(made, params)
            steps = made.runner.stats.steps
            with waits(monkeypatch) as found:
                for _ in range(NUM_STEPS):
                    turn(made)
            steps = made.runner.stats.steps - steps
            end(made)
            say(f"{attention} {dtype} {kind}: {steps} steps, waits {dict(found.calls)}, {len(found.places)} hidden")
            assert found.places == [], kind
            assert set(found.calls) <= {"event"}, kind
            # Of the events one a step is the end of a step; the ring of pinned memory asks for those long passed.
            assert found.blocking <= steps + 1, kind


@pytest.mark.parametrize(("attention", "dtype"), BACKENDS)
def test_nothing_waits_in_prefills(attention: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts in chunks, and beside decodes."""
    name, rng = need_attention(attention), np.random.default_rng(2)
    short = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    with engine(dtype=dtype, attention_backend=name, prefix_cache="none", **SIZES) as made:
        lengths = (700, 30, 5, 300, 64, 1, 900)
        for _ in range(2):
            made.generate([rng.integers(3, 4000, length).tolist() for length in lengths], short)
        prompts = [rng.integers(3, 4000, length).tolist() for length in lengths]
        with waits(monkeypatch) as found:
            made.generate(prompts, short)
    say(f"{attention} {dtype}: prefills, waits {dict(found.calls)}, {len(found.places)} hidden")
    assert found.places == []
    assert set(found.calls) <= {"event"}


@pytest.mark.parametrize("kind", [*COPIES_UP])
@pytest.mark.parametrize("graphs", ["start", "off"])
def test_copies_of_a_decode_step(kind: str, graphs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {"attention_backend": need_attention("triton"), "plugins": {"nvidia": {"graphs": graphs}}}
    with engine(dtype="float32", **ways, **SIZES) as made:
        begin(made, KINDS[kind])
        end(made)
        begin(made, KINDS[kind])
        before = made.runner.stats.steps
        with copies(monkeypatch) as found:
            for _ in range(NUM_STEPS):
                turn(made)
        steps = made.runner.stats.steps - before
        end(made)
    say(f"{kind}, graphs {graphs}: {steps} steps, {found}")
    assert steps == NUM_STEPS
    if ON_CPU:
        assert found.asked_up == COPIES_UP[kind] * steps
        gpu_only()
    assert found.up == COPIES_UP[kind] * steps, found
    assert found.down == steps, found
    assert not [key for key in found.kinds if "Pageable" in key and "Device" in key], found.kinds
    if kind in ("greedy", "drawn"):  # others' operations may copy what they change
        assert not [key for key in found.kinds if "Device -> Device" in key], found.kinds
