"""On a GPU: steps recorded in pieces give what launched steps give. Hidden states of prefills, of prefills beside
decodes, of chunks behind a cached prefix, and of the decodes after them, which read what was stored.

What a step gives depends a little on its number of tokens, since libraries choose other kernels and splits for other
shapes, and a step in pieces is padded. So it is compared with launched steps of the same tokens, within what rounding
moves, and, closely, with launched steps that another prompt fills up to the same number of tokens.

CORE_GPU_TESTS_ON=cpu runs the bodies on core's mock of recorded steps instead, to check the tests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.config.loading import load_settings
from core.engine.build import build_engine
from core.engine.client import EngineRequest
from core.engine.offline import OfflineEngine
from core.interfaces.params import SamplingParams
from core.interfaces.step import Admission, StepPlan
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.registry.resolve import resolve
from core.runner.runner import ModelRunner

ON_CPU = os.environ.get("CORE_GPU_TESTS_ON") == "cpu"
pytestmark = pytest.mark.skipif(not ON_CPU and not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

WIDE = 32 if ON_CPU else 1024
HEAD = 8 if ON_CPU else 128
COMMON: dict[str, Any] = {
    "hidden_size": WIDE, "num_hidden_layers": 2 if ON_CPU else 6, "num_attention_heads": 8, "num_key_value_heads": 2,
    "head_dim": HEAD, "intermediate_size": 3 * WIDE, "vocab_size": 4096, "rope_theta": 5e5, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **COMMON},
    "experts": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **COMMON, "num_experts": 32,
        "moe_intermediate_size": 3 * WIDE // 8, "num_experts_per_tok": 4, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
}  # fmt: skip
# Prompts: all but the last begin in the first step, the longest of them with its first half. The last one comes in the
# second step, beside that half's rest and decodes of the others.
LENGTHS = ([5, 40, 33], [128, 60], [1, 1, 300, 17, 90], [16, 16], [250, 250, 3])
HIDDEN = SamplingParams(temperature=0.0, hidden_states="last")
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


@dataclass(frozen=True)
class Case:
    """close: most that a row's hidden state may be off by from a launched step of as many tokens. far: from one of the
    tokens alone, or three times as much as launched steps differ by themselves. In bfloat16 rounding decides now and
    then that a token goes to other experts; memory that was overwritten would give states off by 1 and more."""

    model: str
    attention: str
    dtype: str
    close: float
    far: float
    quantization: str = "none"

    def __str__(self) -> str:
        return "-".join((self.model, self.attention, self.dtype, self.quantization))


CASES = [
    Case("dense", "triton", "float32", 2e-5, 1e-4),
    Case("dense", "triton", "bfloat16", 3e-2, 6e-2),
    Case("dense", "fa3", "bfloat16", 3e-2, 6e-2),
    Case("dense", "triton", "bfloat16", 0.1, 0.2, quantization="fp8"),
    Case("dense", "fa3", "bfloat16", 0.1, 0.2, quantization="fp8"),
    Case("experts", "triton", "float32", 2e-5, 1e-4),
    Case("experts", "triton", "bfloat16", 0.3, 0.5),
    Case("experts", "fa3", "bfloat16", 0.3, 0.5),
    Case("dense", "flashinfer", "bfloat16", 3e-2, 6e-2),  # last: it compiles
]
if ON_CPU:
    CASES = [Case(name, "torch_native", "float32", 2e-5, 1e-4) for name in MODELS]


def catalog() -> Catalog:
    if not ON_CPU:
        return Catalog.scan()
    from core.testing.mock_graphs import MockGraphHardware
    from core.testing.mock_vendor import VendorMoe

    class Hardware(MockGraphHardware):
        token_sizes = (16, 64, 128, 512)

    plugins = [
        PluginRecord(kind, name, "core-testing", "1.0", target=f"t:{name}", loaded=loaded)
        for kind, name, loaded in (("hardware", "mock_graphs", Hardware), ("moe", "all_experts", VendorMoe))
    ]
    return Catalog.from_records([*Catalog.scan().records, *plugins])


@contextmanager
def built(case: Case, folder: Path) -> Iterator[tuple[OfflineEngine, ModelRunner]]:
    """An engine with random weights. Skips what lacks its library."""
    known = catalog()
    record = next((one for one in known.of_kind("attention") if one.name == case.attention), None)
    if record is None or record.state != "available":
        pytest.skip(f"plugin {case.attention} is not installed")
    backend: Any = known.load("attention", record.full_name)
    if (reason := backend.unavailable()) is not None:
        pytest.skip(f"attention {case.attention}: {reason}")
    (folder / "config.json").write_text(json.dumps(MODELS[case.model]))
    given: dict[str, Any] = {
        "model": str(folder), "device": "nvidia", "load_format": "dummy", "log_interval_s": 0, "context_length": 2048,
        "random_seed": 1, "max_running_requests": 16, "attention_backend": case.attention, "dtype": case.dtype,
        "max_total_tokens": 16384, "chunked_prefill_size": 512, "grammar_backend": "none",
    }  # fmt: skip
    if case.quantization != "none":
        given["quantization"] = case.quantization
    if ON_CPU:
        given |= {"device": "mock_graphs", "moe_backend": "all_experts"}
    else:
        given["plugins"] = {"nvidia": {"graphs": "start", "max_graph_tokens": 512}}
    settings = load_settings(given, {}, origin="argument").settings
    engine = OfflineEngine(build_engine(settings, resolve(settings, known)), 1)
    executor: Any = engine.engine.executor if hasattr(engine.engine, "executor") else engine.engine._executor
    runner: ModelRunner = getattr(executor, "runner", None) or executor._runner
    try:
        yield engine, runner
    finally:
        engine.engine.close()
        runner.release()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


class Steps:
    """Steps of one set of prompts, planned by hand. fill: numbers of tokens that the steps with prefills are filled up
    to by another prompt, or nothing."""

    def __init__(self, runner: ModelRunner, lengths: Sequence[int], fill: Sequence[int] = ()) -> None:
        self.runner = runner
        self.rng = np.random.default_rng(sum(lengths))
        self.prompts = [self.rng.integers(3, 4000, n).astype(np.int32) for n in lengths]
        self.fill, self.next_page, self.next_slot, self.number = list(fill), 1, len(lengths), 0
        self.found: list[np.ndarray[Any, Any]] = []  # hidden states [rows, D] of each step
        self.sizes: list[int] = []  # tokens of each step with prefills

    def take(self) -> Steps:
        """Prefills, one of them only half; the other half and the last prompt beside decodes; decodes."""
        lens = [len(prompt) for prompt in self.prompts]
        others, last = list(range(len(lens) - 1)), len(lens) - 1
        longest = max(others, key=lambda row: lens[row])
        half = max(1, lens[longest] // 2) if lens[longest] > 1 else 0
        first = [(row, half if row == longest and half else lens[row]) for row in others]
        self.step([], [(row, count, count) for row, count in first], new=others)
        decodes = [(row, lens[row] + 1) for row in others if not (half and row == longest)]
        rest = [(longest, lens[longest] - half, lens[longest])] if half else []
        self.step(decodes, [*rest, (last, lens[last], lens[last])], new=[last])
        self.step([(row, length + 1) for row, length in decodes] + [(row, lens[row] + 1) for row, *_ in rest]
                  + [(last, lens[last] + 1)], [], new=[])  # fmt: skip
        return self

    def step(self, decodes: Sequence[tuple[int, int]], prefills: list[tuple[int, int, int]], new: list[int]) -> None:
        """decodes: (slot, length). prefills: (slot, new tokens, length). new: slots that are admitted."""
        fresh = {slot: self.prompts[slot] for slot in new}
        num_tokens = len(decodes) + sum(count for _, count, _ in prefills)
        if prefills:
            self.sizes.append(num_tokens)
            missing = self.fill[len(self.sizes) - 1] - num_tokens if self.fill else 0
            if missing > 0:
                fresh[self.next_slot] = np.arange(3, 3 + missing, dtype=np.int32)
                prefills = [*prefills, (self.next_slot, missing, missing)]
                self.next_slot += 1
        rows = [*((slot, 1, length) for slot, length in decodes), *prefills]
        slots, counts, lens = (np.array(column, np.int32) for column in zip(*rows, strict=True))
        full = [length >= len(self.prompts[slot]) if slot < len(self.prompts) else False for slot, _, length in rows]
        plan = StepPlan(self.number, slots, len(decodes), counts, lens, np.array(full, np.bool_))
        size, entries = self.runner.config.page_size, []
        for slot, prompt in fresh.items():
            plan.admissions.append(Admission(slot, slot, prompt, len(prompt), HIDDEN, 0))
            pages = -(-(len(prompt) + 8) // size)
            entries += [(slot, index, self.next_page + index) for index in range(pages)]
            self.next_page += pages
        if entries:
            where, index, ids = (np.array(column, np.int32) for column in zip(*entries, strict=True))
            plan.page_slots, plan.page_index, plan.page_ids = where, index, ids[None]
        self.number += 1
        result = self.runner.launch(plan).wait()
        assert result.error is None, result.error
        asked = [slot for slot, ok in zip(slots.tolist(), full, strict=True) if ok]
        self.found.append(np.array([result.extras[slot].hidden[0] for slot in asked]).reshape(len(asked), WIDE))
        # Whatever was drawn: all runs go on with the same tokens.
        with torch.inference_mode():
            last = self.runner._last_tokens
            last[: len(self.prompts)] = torch.arange(7, 7 + len(self.prompts), device=last.device)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()


def off(wanted: list[np.ndarray[Any, Any]], found: list[np.ndarray[Any, Any]]) -> list[float]:
    """Of each step the largest of its rows' differences, as a share of the row's norm."""
    assert all(np.isfinite(states).all() for states in (*wanted, *found))
    return [
        float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)).max(initial=0.0))
        for a, b in zip(wanted, found, strict=True)
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hidden_states_are_those_of_launched_steps(case: Case, tmp_path: Path) -> None:
    lines, wrong = [], []
    with built(case, tmp_path) as (_, runner):
        pieces = runner._pieces
        assert pieces is not None, "nothing was recorded in pieces; the log says why"
        for lengths in LENGTHS:
            runner._pieces = None
            launched = Steps(runner, lengths).take()
            again = Steps(runner, lengths).take()
            sizes = [next((size for size in pieces.sizes if size >= n), 0) for n in launched.sizes]
            filled = Steps(runner, lengths, sizes).take()
            runner._pieces, before = pieces, runner.stats.pieced_steps
            pieced = Steps(runner, lengths).take()
            expected = sum(size > 0 for size in sizes)
            assert runner.stats.pieced_steps - before >= expected > 0, "steps were launched"
            noise, shape = off(launched.found, again.found), off(launched.found, filled.found)
            far, close = off(launched.found, pieced.found), off(filled.found, pieced.found)
            names = ("prefill", "mixed", "decode")
            lines += [
                f"{lengths} {name} of {n} in {size}: again {a:.0e}, filled {b:.0e}; pieces {c:.0e}, both {d:.0e}"
                for name, n, size, a, b, c, d in zip(
                    names, [*launched.sizes, 0], [*sizes, 0], noise, shape, far, close, strict=True
                )
            ]
            moved = 3 * max(*noise, *shape)
            if max(close) > max(case.close, 3 * max(noise)) or max(far) > max(case.far, moved):
                wrong.append(lengths)
    print(f"\n{case}", *lines, sep="\n  ", flush=True)
    assert not wrong, lines


@pytest.mark.parametrize("case", [case for case in CASES if case.dtype == "float32"], ids=str)
def test_tokens_are_those_of_launched_steps(case: Case, tmp_path: Path) -> None:
    """Through the scheduler: chunks, cached prefixes, requests that come while others decode."""
    rng = np.random.default_rng(5)
    common = rng.integers(3, 4000, 70).tolist()
    waves = [
        [rng.integers(3, 4000, int(n)).tolist() for n in (5, 40, 120, 77, 1, 300)],
        [common + rng.integers(3, 4000, int(n)).tolist() for n in (1, 9, 30)],
        [common + rng.integers(3, 4000, int(n)).tolist() for n in (17, 2, 64)],
    ]
    with built(case, tmp_path) as (engine, runner):
        pieces, answers = runner._pieces, []
        assert pieces is not None, "nothing was recorded in pieces; the log says why"
        for used in (None, pieces):
            runner._pieces, before = used, runner.stats.pieced_steps
            engine.engine.flush_cache()
            chunks = [
                chunk
                for wave in waves
                for chunk in engine.generate([EngineRequest(np.array(p, np.int32), GREEDY, seed=1) for p in wave])
            ]
            answers.append([(chunk.tokens, chunk.cached_tokens, chunk.error) for chunk in chunks])
            count = runner.stats.pieced_steps - before
            assert bool(count) is (used is not None)
    print(f"\n{case}: {len(answers[0])} answers, {count} steps in pieces", flush=True)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("case", CASES[:1], ids=str)
def test_what_recording_costs(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds and memory, to read; it has to fit beside everything else."""
    import time

    with built(case, tmp_path) as (_, runner):
        graphs: Any = runner._captured._graphs if runner._captured is not None else runner._pieces._graphs  # type: ignore[union-attr]
        free = 0 if ON_CPU else torch.cuda.mem_get_info()[0]
        start = time.perf_counter()
        pieces = runner._piecewise_steps(graphs)
        assert pieces is not None
        with torch.inference_mode(), runner._hardware.stream():
            pieces.capture()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            free -= torch.cuda.mem_get_info()[0]
        with capsys.disabled():
            print(f"\n  {pieces.sizes} tokens recorded in {time.perf_counter() - start:.2f} s, {free / 2**20:.0f} MiB")
        assert pieces._recorded == set(pieces.sizes)
