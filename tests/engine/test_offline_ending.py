"""A caller of the offline engine may end single requests; they give back what they held."""

from __future__ import annotations

import numpy as np
import pytest
from engine_fakes import expected, make_engine

from core.engine.client import EngineRequest, TokenChunk
from core.engine.offline import OfflineEngine
from core.interfaces.params import SamplingParams


@pytest.mark.parametrize("overlap", [False, True])
def test_on_progress_ends_a_request(overlap: bool) -> None:
    engine = OfflineEngine(make_engine(overlap, max_running=2))
    jobs = [EngineRequest(np.array([i + 50], np.int32), SamplingParams(max_tokens=200), seed=i) for i in range(6)]
    seen = [0] * len(jobs)

    def end_even_ones_early(index: int, chunk: TokenChunk) -> bool:
        seen[index] += len(chunk.tokens)
        return index % 2 == 0 and seen[index] >= 3

    done = engine.generate(jobs, end_even_ones_early)
    for index, chunk in enumerate(done):
        want = expected([index + 50], index, 200)
        assert chunk.tokens == (want[:3] if index % 2 == 0 else want)
    assert not engine.engine.has_work
