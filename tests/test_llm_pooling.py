"""LLM: vectors, labels and scores without a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).parent / "server")]

from pooled_checkpoints import hidden_states, logits, write_classifier, write_embedder  # noqa: E402

from core.interfaces.errors import ConfigError, RequestError  # noqa: E402
from core.llm import LLM  # noqa: E402

TEXTS = ["The quick brown fox", "a", "one two three four five six seven eight nine ten " * 3]
OPTIONS: dict[str, Any] = {
    "device": "cpu", "dtype": "float32", "chunked_prefill_size": 16, "hooks": ("none",), "max_running_requests": 4,
    "log_interval_s": 0,
}  # fmt: skip


def test_vectors(tmp_path: Path) -> None:
    folder = write_embedder(tmp_path)
    run = hidden_states(folder)
    with LLM(folder, matryoshka=True, **OPTIONS) as llm:
        wanted = [run(llm.tokenizer.encode(text))[-1] for text in TEXTS]
        unit = [vector / np.linalg.norm(vector) for vector in wanted]
        for got, vector in zip(llm.embed(TEXTS), unit, strict=True):
            np.testing.assert_allclose(got, vector, atol=1e-5)
        (one,) = llm.embed(TEXTS[0], dimensions=5)
        np.testing.assert_allclose(one, wanted[0][:5] / np.linalg.norm(wanted[0][:5]), atol=1e-5)
        (ids,) = llm.embed([40, 41])
        np.testing.assert_allclose(ids, run([40, 41])[-1] / np.linalg.norm(run([40, 41])[-1]), atol=1e-5)
        assert llm.score(TEXTS[0], TEXTS[1:]) == pytest.approx([unit[0] @ unit[1], unit[0] @ unit[2]], abs=1e-5)
        ranked = llm.rerank(TEXTS[0], TEXTS, top_n=2)
        assert (len(ranked), ranked[0].index, ranked[0].document) == (2, 0, TEXTS[0])
        assert ranked[0].score == pytest.approx(1, abs=1e-5)
        with pytest.raises(RequestError, match="task is 'embed'"):
            llm.classify(TEXTS)
        assert "task is 'embed'" in str(llm.generate(TEXTS[0])[0].completions[0].error)
        with pytest.raises(RequestError, match=r"texts\[1\] has 300 tokens"):
            llm.embed([[5], [5] * 300])
        with pytest.raises(RequestError, match="text_1 holds 2"):
            llm.score(["a", "b"], ["c", "d", "e"])


def test_labels(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, "qwen3", 2)
    run = logits(folder, "Qwen3ForSequenceClassification")
    with LLM(folder, **OPTIONS) as llm:
        for text, found, raw in zip(TEXTS, llm.classify(TEXTS), llm.classify(TEXTS, activation=False), strict=True):
            wanted = run(llm.tokenizer.encode(text))
            np.testing.assert_allclose(raw.scores, wanted, atol=1e-5)
            np.testing.assert_allclose(found.scores, np.exp(wanted) / np.exp(wanted).sum(), atol=1e-5)
            assert found.label == f"LABEL_{wanted.argmax()}"
    # The same checkpoint for its hidden states: the head is left out.
    with LLM(folder, task="embed", pooling="mean", normalize="off", **OPTIONS) as llm:
        (vector,) = llm.embed("Hello")
        states = hidden_states(folder)(llm.tokenizer.encode("Hello"))
        np.testing.assert_allclose(vector, states.mean(0), atol=1e-5)
    with pytest.raises(ConfigError, match="task is 'generate'"):
        LLM(folder, task="generate", **OPTIONS)
