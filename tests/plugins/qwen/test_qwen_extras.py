"""What a request can ask for beside tokens, against transformers: prompt log-probabilities, hidden states, vectors.

The whole engine runs, with chunks smaller than the prompts, prefix hits, preemption and mixed batches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.config.loading import load_settings
from core.engine.build import build_engine
from core.engine.client import EngineRequest, TokenChunk
from core.engine.offline import OfflineEngine
from core.interfaces.params import PoolingParams, SamplingParams
from core.registry import Catalog
from core.registry.resolve import resolve
from core.testing.checkpoint import write_tiny_checkpoint

VOCAB = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("extras"), "qwen3", head_dim=16, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    """ids -> (log-probabilities [T, V], final hidden states [T, D])."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    @torch.inference_mode()
    def run(tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        out = model(torch.tensor([list(tokens)]), output_hidden_states=True, use_cache=False)
        return torch.log_softmax(out.logits[0], -1).numpy(), out.hidden_states[-1][0].numpy()

    return run


def make(folder: Path, overlap: bool, **settings: Any) -> OfflineEngine:
    """overlap: the device runs no steps by itself, so a thread does, as for plugins that can."""
    given = {
        "model": str(folder), "device": "cpu", "dtype": "float32", "page_size": 4, "max_running_requests": 8,
        "log_interval_s": 0, "chunked_prefill_size": 16, "hooks": ("none",), "pooling": "last", **settings,
    }  # fmt: skip
    resolved = load_settings(given, origin="argument").settings
    resolution = replace(resolve(resolved, Catalog.scan()), overlap=overlap)
    return OfflineEngine(build_engine(resolved, resolution), 0)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "overlap"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[OfflineEngine]:
    """With and without overlap."""
    engine = make(folder, overlap=request.param)
    yield engine
    engine.engine.close()


def ids(count: int, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(7, VOCAB) for _ in range(count)]


def asks(prompt: list[int], pooling: PoolingParams | None = None, **sampling: Any) -> EngineRequest:
    given = SamplingParams(**{"temperature": 0.0, "max_tokens": 4, "ignore_eos": True, **sampling})
    return EngineRequest(np.array(prompt, np.int32), given, pooling=pooling)


def check_logprobs(request: EngineRequest, chunk: TokenChunk, oracle: Any) -> None:
    prompt, wanted = request.prompt.tolist(), request.sampling
    start, count = max(1, wanted.prompt_logprobs_start), wanted.prompt_logprobs or 0
    told = [item for item in chunk.extras or () if item.prompt_logprobs is not None]
    if start >= len(prompt):
        assert not told
        return
    (extras,) = told
    assert extras.prompt_start == start
    assert extras.prompt_logprobs is not None
    assert len(extras.prompt_logprobs) == len(prompt) - start
    reference = oracle(prompt)[0]
    for position, entry in enumerate(extras.prompt_logprobs, start):
        before = reference[position - 1]
        assert entry.logprob == pytest.approx(before[prompt[position]], abs=1e-4)
        assert len(entry.ids) == len(entry.logprobs) == count
        best = np.sort(before)[::-1][:count]
        np.testing.assert_allclose(entry.logprobs, best, atol=1e-4)
        np.testing.assert_allclose(before[entry.ids], best, atol=1e-4)


def states(chunk: TokenChunk) -> np.ndarray:
    parts = [np.frombuffer(item.hidden, "<f4").reshape(-1, item.hidden_size) for item in chunk.extras or ()]
    return np.concatenate(parts)


def vector(chunk: TokenChunk) -> np.ndarray:
    assert chunk.error is None
    assert chunk.tokens == []
    assert chunk.finish_reason == "stop"
    (extras,) = chunk.extras or ()
    return np.frombuffer(extras.pooled, "<f4")


def pooled(hidden: np.ndarray, how: str) -> np.ndarray:
    return {"last": hidden[-1], "first": hidden[0], "mean": hidden.mean(0)}[how]


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33, 50])
def test_prompt_logprobs(engine: OfflineEngine, oracle: Any, length: int) -> None:
    requests = [
        asks(ids(length, length), prompt_logprobs=count, prompt_logprobs_start=start)
        for count, start in ((0, 0), (3, 0), (2, 5), (1, 40))
    ]
    for request, chunk in zip(requests, engine.generate(requests), strict=True):
        assert len(chunk.tokens) == 4
        check_logprobs(request, chunk, oracle)


@pytest.mark.parametrize("length", [1, 16, 37])
def test_hidden_states(engine: OfflineEngine, oracle: Any, length: int) -> None:
    prompt = ids(length, 100 + length)
    last, everything, plain = engine.generate(
        [asks(prompt, hidden_states="last"), asks(prompt, hidden_states="all"), asks(prompt)]
    )
    assert plain.extras is None
    text = prompt + plain.tokens[:-1]
    hidden = oracle(text)[1]
    np.testing.assert_allclose(states(everything), hidden, atol=1e-4)
    np.testing.assert_allclose(states(last), hidden[length - 1 :], atol=1e-4)


@pytest.mark.parametrize("how", ["last", "mean", "first"])
def test_vectors(engine: OfflineEngine, oracle: Any, how: Any) -> None:
    prompts = [ids(length, 7 * length) for length in (1, 2, 16, 17, 40, 3)]
    requests = [asks(prompt, PoolingParams(pooling=how)) for prompt in prompts]
    for prompt, chunk in zip(prompts, engine.generate(requests), strict=True):
        np.testing.assert_allclose(vector(chunk), pooled(oracle(prompt)[1], how), atol=1e-4)


def test_a_cached_prompt_gives_the_same_vector(engine: OfflineEngine, oracle: Any) -> None:
    prompt = ids(29, 5)
    for how in ("last", "mean", "first", "last"):
        (chunk,) = engine.generate([asks(prompt, PoolingParams(pooling=how))])  # type: ignore[arg-type]
        np.testing.assert_allclose(vector(chunk), pooled(oracle(prompt)[1], how), atol=1e-4)
    assert chunk.cached_tokens == 28  # all but the last token: its row is a single token
    (chunk,) = engine.generate([asks(prompt, prompt_logprobs=1)])
    assert chunk.cached_tokens == 0
    check_logprobs(asks(prompt, prompt_logprobs=1), chunk, oracle)


def test_all_kinds_in_one_batch(engine: OfflineEngine, oracle: Any) -> None:
    source = random.Random(3)
    plain = {n: engine.generate([asks(ids(n, n), max_tokens=8)])[0].tokens for n in range(1, 48)}
    requests: list[EngineRequest] = []
    for _ in range(60):
        prompt = ids(n := source.randrange(1, 48), n)
        kind = source.randrange(5)
        if kind == 0:
            requests.append(asks(prompt, PoolingParams(pooling=source.choice(["last", "mean", "first"]))))
        elif kind == 1:
            requests.append(asks(prompt, max_tokens=8, prompt_logprobs=2, logprobs=1))
        elif kind == 2:
            requests.append(asks(prompt, max_tokens=8, hidden_states=source.choice(["last", "all"])))
        else:
            requests.append(asks(prompt, max_tokens=8))
    for request, chunk in zip(requests, engine.generate(requests), strict=True):
        prompt = request.prompt.tolist()
        if request.pooling is not None:
            np.testing.assert_allclose(
                vector(chunk), pooled(oracle(prompt)[1], request.pooling.pooling), atol=1e-4
            )  # fmt: skip
            continue
        assert chunk.tokens == plain[len(prompt)]
        if request.sampling.prompt_logprobs is not None:
            check_logprobs(request, chunk, oracle)
        if request.sampling.hidden_states is not None:
            hidden = oracle(prompt + chunk.tokens[:-1])[1]
            first = 0 if request.sampling.hidden_states == "all" else len(prompt) - 1
            np.testing.assert_allclose(states(chunk), hidden[first:], atol=1e-4)


@pytest.mark.parametrize("overlap", [False, True])
def test_preempted_requests_tell_everything_once(folder: Path, oracle: Any, overlap: bool) -> None:
    small = make(folder, max_total_tokens=120, overlap=overlap, chunked_prefill_size=12)
    kinds: list[dict[str, Any]] = [{"prompt_logprobs": 1}, {"hidden_states": "all"}, {"hidden_states": "last"}, {}]
    requests = [asks(ids(20 + n, n), max_tokens=24, **kinds[n % 4]) for n in range(8)]
    pooling = [PoolingParams(pooling="mean") if n % 2 else PoolingParams() for n in range(4)]
    requests += [asks(ids(40 + n, n), pooling[n]) for n in range(4)]
    for request, chunk in zip(requests, small.generate(requests), strict=True):
        prompt = request.prompt.tolist()
        if request.pooling is not None:
            hidden = oracle(prompt)[1]
            np.testing.assert_allclose(vector(chunk), pooled(hidden, request.pooling.pooling), atol=1e-4)
            continue
        assert len(chunk.tokens) == 24
        if request.sampling.prompt_logprobs is not None:
            check_logprobs(request, chunk, oracle)
        if request.sampling.hidden_states is not None:
            hidden = oracle(prompt + chunk.tokens[:-1])[1]
            first = 0 if request.sampling.hidden_states == "all" else len(prompt) - 1
            np.testing.assert_allclose(states(chunk), hidden[first:], atol=1e-4)
    assert small.engine._scheduler.stats()["preemptions_total"] > 0
    small.engine.close()
