"""`--deterministic` on the GPU: the same bits alone and among 64 others that come and go."""

from __future__ import annotations

import numpy as np
import pytest

from core.engine.client import EngineRequest, TokenChunk
from core.interfaces.params import SamplingParams
from tests.gpu.engines import Built, demo_prompts, engine, say

SIZES = {"max_running_requests": 64, "max_total_tokens": 16384, "context_length": 256, "chunked_prefill_size": 512}
NUM_OTHERS = 64
WATCHED = (2, 6, 9)  # numbers of prompts


def bits(chunk: TokenChunk) -> tuple[list[int], bytes]:
    """Tokens and every bit of their log-probabilities and of the best alternatives'."""
    numbers = [value for one in chunk.logprobs or () for value in (one.logprob, *one.logprobs)]
    return chunk.tokens, np.array(numbers, np.float64).tobytes()


def together(made: Built, params: SamplingParams) -> list[TokenChunk]:
    """The watched requests among others of other lengths, parameters and ends."""
    rng = np.random.default_rng(1)
    asked = []
    for index in range(NUM_OTHERS):
        prompt = rng.integers(3, 4000, int(rng.integers(1, 90))).astype(np.int32)
        other = SamplingParams(
            temperature=float(rng.choice([0.0, 0.7, 1.0])), top_p=float(rng.choice([1.0, 0.9])), ignore_eos=True,
            max_tokens=int(rng.integers(2, 30)), logprobs=3 if index % 3 == 0 else None,
        )  # fmt: skip
        asked.append(EngineRequest(prompt, other, seed=index))
    for place, number in enumerate(WATCHED):
        mine = EngineRequest(np.array(demo_prompts()[number], np.int32), params, seed=number)
        asked.insert(5 + 23 * place, mine)
    chunks = made.engine.generate(asked)
    assert [chunk.error for chunk in chunks] == [None] * len(asked)
    return [chunks[5 + 23 * place] for place in range(len(WATCHED))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_bits_are_equal_alone_and_in_company(dtype: str, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, top_k=40, top_p=0.95, max_tokens=20, ignore_eos=True, logprobs=5)
    with engine(dtype=dtype, deterministic=True, prefix_cache="none", **SIZES) as made:
        alone = [made.generate([demo_prompts()[number]], params, [number])[0] for number in WATCHED]
        company = together(made, params)
        say(f"deterministic {dtype} temperature {temperature}: {made.resolution.effective['attention_backend']}")
    for mine, among in zip(alone, company, strict=True):
        assert len(mine.tokens) == 20
        assert bits(mine) == bits(among)
