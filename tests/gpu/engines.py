"""Engines for the tests of this folder, their requests, and how answers are compared."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.config.loading import load_settings
from core.engine.build import build_engine
from core.engine.client import EngineRequest, TokenChunk
from core.engine.offline import OfflineEngine
from core.interfaces.params import SamplingParams
from core.registry.catalog import Catalog
from core.registry.resolve import Resolution, resolve
from core.runner.runner import ModelRunner
from tests.gpu.reporting import LINES

ON_CPU = os.environ.get("CORE_GPU_TESTS_ON") == "cpu"
DEVICE = "cpu" if ON_CPU else "nvidia"
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=2)
TEXTS = (
    "What is 17 + 25?", "Name three colours.", "Hello! Who are you?", "Count from one to ten.",
    "The capital of France is", "Write a JSON object with a name and an age.",
)  # fmt: skip


@dataclass
class Built:
    """An engine with what it was made of."""

    engine: OfflineEngine
    resolution: Resolution

    @property
    def runner(self) -> ModelRunner:
        executor: Any = self.engine.engine.executor
        found: ModelRunner = getattr(executor, "runner", None) or executor._runner
        return found

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams = GREEDY, seeds: Sequence[int] | None = None
    ) -> list[TokenChunk]:
        """All at once; an error fails the test. seeds: of each request, else its number."""
        asked = [
            EngineRequest(np.array(prompt, np.int32), params, seed=index if seeds is None else seeds[index])
            for index, prompt in enumerate(prompts)
        ]
        chunks = self.engine.generate(asked)
        for chunk in chunks:
            assert chunk.error is None, chunk.error
        return chunks


@contextmanager
def engine(model: Path | str | None = None, *, device: str = DEVICE, **given: Any) -> Iterator[Built]:
    """An engine with these settings, the bundled model by default; closed at the end. Settings of the device's own
    plugin, and overlap, are left out where another device stands in."""
    if device != "nvidia":
        given.pop("plugins", None)
        given.pop("overlap", None)
    flat = {"random_seed": 1, "log_interval_s": 0, "grammar_backend": "none", "device": device, **given}
    if device == "cpu":
        flat.setdefault("cpu_threads", 2)  # others run beside this one
    if model is not None:
        flat["model"] = str(model)
    settings = load_settings(flat, {}, origin="argument").settings
    resolution = resolve(settings, Catalog.scan())
    built = Built(OfflineEngine(build_engine(settings, resolution), 1), resolution)
    try:
        yield built
    finally:
        built.engine.engine.close()
        built.runner.release()
        del built
        gc.collect()


def need_attention(name: str) -> str:
    """The backend to ask for, which is another where the CPU stands in. Skips where its library is missing, with what
    it says itself."""
    if ON_CPU:
        return "torch_native"
    catalog = Catalog.scan()
    record = next((one for one in catalog.of_kind("attention") if one.name == name), None)
    if record is None or record.state != "available":
        pytest.skip(f"plugin {name}: {record.reason if record is not None else 'not installed'}")
    backend: Any = catalog.load("attention", record.full_name)
    if (reason := backend.unavailable()) is not None:
        pytest.skip(f"attention {name}: {reason}")
    return name


@cache
def demo_prompts() -> list[list[int]]:
    """Texts of the bundled model's kind, and random tokens of many lengths."""
    from core.frontend.tokenizer import Tokenizer
    from plugin_demo import checkpoint

    tokenizer = Tokenizer.load(checkpoint())
    rng = np.random.default_rng(0)
    drawn = [rng.integers(3, 4000, int(n)).tolist() for n in rng.integers(1, 60, 6)]
    return [tokenizer.encode(text) for text in TEXTS] + drawn


def agree(want: Sequence[TokenChunk], got: Sequence[TokenChunk], near: float) -> float:
    """The share of tokens that could be compared: of each answer those up to where the two best of `want` are nearer
    than `near` in log-probability, behind which either may be right. Fails where one of these is another."""
    compared = total = 0
    for index, (a, b) in enumerate(zip(want, got, strict=True)):
        total += len(a.tokens)
        for place, (token, best) in enumerate(zip(a.tokens, a.logprobs or (), strict=True)):
            if best.logprobs[0] - best.logprobs[1] < near:
                break
            compared += 1
            assert b.tokens[place] == token, (
                f"answer {index}, token {place}: {b.tokens[place]}, not {token}, which is ahead by "
                f"{best.logprobs[0] - best.logprobs[1]:.4f}: {a.tokens} / {b.tokens}"
            )
    return compared / total


def say(*parts: object) -> None:
    """A line of figures: pytest -s shows it, and the summary of `python -m tests.gpu` has it, also of a part that was
    stopped."""
    line = " ".join(str(part) for part in parts)
    print(line, flush=True)
    if path := os.environ.get(LINES):
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def gpu_only() -> None:
    """Ends a test's body where the CPU stands in: what follows is about a GPU alone."""
    if ON_CPU:
        pytest.skip("the rest needs an NVIDIA GPU; up to here it ran on the CPU")


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
