"""Vectors, labels and scores over HTTP, against transformers and by the unmodified openai client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from pooled_checkpoints import (
    END,
    hidden_states,
    logits,
    with_words,
    write_classifier,
    write_embedder,
)

from core.frontend.pooling import JUDGE_INSTRUCT, JUDGE_SYSTEM, JUDGE_USER
from core.testing.checkpoint import write_tiny_checkpoint
from core.testing.server import MemoryServer, memory_server

TEXTS = ["The quick brown fox", "Grüße aus Köln 🙂", "a", "one two three four five six seven eight nine ten " * 4]
OPTIONS: dict[str, Any] = {"dtype": "float32", "chunked_prefill_size": 16, "page_size": 4, "hooks": ("none",)}


def serve(folder: Path, **settings: Any) -> MemoryServer:
    return memory_server(folder, served_model_name="tiny", **{**OPTIONS, **settings})


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def close(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), atol=1e-5, rtol=1e-4)


def refused(reply: Any, status: int, param: str | None, told: str) -> None:
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param), error
    assert told in error["message"]


class TestEmbedder:
    """A checkpoint as Qwen3-Embedding's: last token, normalised, no head, no "model." in names."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_embedder(tmp_path_factory.mktemp("embedder"))

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, folder: Path) -> Iterator[MemoryServer]:
        with serve(folder) as server:
            yield server

    @pytest.fixture(scope="class")
    @classmethod
    def oracle(cls, folder: Path) -> Any:
        return hidden_states(folder)

    def wanted(self, server: MemoryServer, oracle: Any, text: str) -> np.ndarray:
        ids = server.context.ready_service().tokenizer.encode(text)
        assert ids[-1] == END
        return unit(oracle(ids)[-1])

    def test_the_openai_client_gets_what_transformers_computes(self, server: MemoryServer, oracle: Any) -> None:
        client = server.openai()
        plain = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
        packed = client.embeddings.create(model="tiny", input=TEXTS)  # the client asks for base64 by itself
        assert [item.index for item in plain.data] == [0, 1, 2, 3]
        for text, one, other in zip(TEXTS, plain.data, packed.data, strict=True):
            close(one.embedding, self.wanted(server, oracle, text))
            close(other.embedding, one.embedding)
        tokens = sum(len(server.context.ready_service().tokenizer.encode(text)) for text in TEXTS)
        assert (plain.usage.prompt_tokens, plain.usage.total_tokens, plain.model) == (tokens, tokens, "tiny")

    def test_base64_is_little_endian_float32(self, server: MemoryServer) -> None:
        body = {"input": "a", "encoding_format": "base64"}
        raw = server.client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
        plain = server.client.post("/v1/embeddings", json={"input": "a"}).json()["data"][0]["embedding"]
        close(np.frombuffer(base64.b64decode(raw), "<f4"), plain)

    def test_ids_one_and_many(self, server: MemoryServer, oracle: Any) -> None:
        lists = [[40, 41, 42], [50], list(range(20, 80))]
        reply = server.client.post("/v1/embeddings", json={"input": lists}).json()
        for ids, item in zip(lists, reply["data"], strict=True):
            close(item["embedding"], unit(oracle(ids)[-1]))
        (one,) = server.client.post("/v1/embeddings", json={"input": lists[0]}).json()["data"]
        close(one["embedding"], reply["data"][0]["embedding"])

    def test_more_texts_than_the_engine_is_given_at_once(self, server: MemoryServer) -> None:
        texts = [f"text number {n % 40}" for n in range(300)]
        data = server.client.post("/v1/embeddings", json={"input": texts}).json()["data"]
        assert [item["index"] for item in data] == list(range(300))
        close(data[3]["embedding"], data[43]["embedding"])
        assert not np.allclose(data[3]["embedding"], data[4]["embedding"], atol=1e-3)

    def test_truncation_keeps_the_closing_token(self, server: MemoryServer, oracle: Any) -> None:
        text = TEXTS[3]
        ids = server.context.ready_service().tokenizer.encode(text)
        for side, kept in (("right", [*ids[:9], END]), ("left", [*ids[-10:-1], END])):
            body = {"input": text, "truncate_prompt_tokens": 10, "truncation_side": side}
            reply = server.client.post("/v1/embeddings", json=body).json()
            assert reply["usage"]["prompt_tokens"] == 10
            close(reply["data"][0]["embedding"], unit(oracle(kept)[-1]))
        body = {"input": [ids], "truncate_prompt_tokens": 3}
        close(server.client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"], unit(oracle(ids[:3])[-1]))

    def test_a_text_may_fill_the_whole_context(self, server: MemoryServer, oracle: Any) -> None:
        ids = [20 + n % 200 for n in range(256)]
        reply = server.client.post("/v1/embeddings", json={"input": ids}).json()
        close(reply["data"][0]["embedding"], unit(oracle(ids)[-1]))
        refused(server.client.post("/v1/embeddings", json={"input": [*ids, 7]}), 400, "input", "at most 256")
        body = {"input": [*ids, 7], "truncate_prompt_tokens": -1}
        close(server.client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"], unit(oracle(ids)[-1]))

    def test_ollama(self, server: MemoryServer, oracle: Any) -> None:
        body = {"model": "tiny:latest", "input": TEXTS[:2], "options": {}, "keep_alive": "5m"}
        reply = server.client.post("/api/embed", json=body).json()
        for text, vector in zip(TEXTS, reply["embeddings"], strict=False):
            close(vector, self.wanted(server, oracle, text))
        assert reply["prompt_eval_count"] > 0
        assert len(server.client.post("/api/embed", json={"input": "x " * 400}).json()["embeddings"]) == 1
        long = server.client.post("/api/embed", json={"input": "x " * 400, "truncate": False})
        assert long.status_code == 400
        assert "at most 256" in long.json()["error"]
        old = server.client.post("/api/embeddings", json={"model": "tiny", "prompt": TEXTS[0]}).json()
        close(old["embedding"], reply["embeddings"][0])
        reply = server.client.post("/api/embed", json={"input": "a", "options": {"num_ctx": 9}})
        assert reply.status_code == 400
        assert "options.num_ctx has no effect" in reply.json()["error"]

    def test_rerank_by_the_cosine(self, server: MemoryServer, oracle: Any) -> None:
        documents = [TEXTS[1], {"text": TEXTS[2], "id": 7}, TEXTS[3]]
        body = {"query": TEXTS[0], "documents": documents}
        reply = server.client.post("/v1/rerank", json=body).json()
        query = self.wanted(server, oracle, TEXTS[0])
        cosines = [float(query @ self.wanted(server, oracle, text)) for text in TEXTS[1:]]
        assert [item["index"] for item in reply["results"]] == sorted(range(3), key=lambda n: -cosines[n])
        for item in reply["results"]:
            close(item["relevance_score"], cosines[item["index"]])
        shown = {item["index"]: item["document"] for item in reply["results"]}
        assert shown[0] == {"text": TEXTS[1]}
        assert shown[1] == {"text": TEXTS[2], "id": 7}
        for path, method in (("/rerank", "post"), ("/v2/rerank", "post"), ("/v1/rerank", "put")):
            short = {**body, "top_n": 1, "return_documents": False}
            (best,) = getattr(server.client, method)(path, json=short).json()["results"]
            assert best.keys() == {"index", "relevance_score"}
            assert best["index"] == reply["results"][0]["index"]
        told = server.client.post("/v1/rerank", json={**body, "instruct": "Find it"}).json()
        asked = self.wanted(server, oracle, f"Instruct: Find it\nQuery:{TEXTS[0]}")
        scores = {item["index"]: item["relevance_score"] for item in told["results"]}
        close(scores[2], asked @ self.wanted(server, oracle, TEXTS[3]))

    def test_score_of_pairs(self, server: MemoryServer, oracle: Any) -> None:
        vectors = [self.wanted(server, oracle, text) for text in TEXTS]
        one = server.client.post("/v1/score", json={"text_1": TEXTS[0], "text_2": TEXTS[1:]}).json()
        close([item["score"] for item in one["data"]], [vectors[0] @ other for other in vectors[1:]])
        both = server.client.post("/score", json={"text_1": TEXTS[:2], "text_2": TEXTS[2:]}).json()
        close([item["score"] for item in both["data"]], [vectors[0] @ vectors[2], vectors[1] @ vectors[3]])
        body = {"text_1": TEXTS[:2], "text_2": TEXTS[:3]}
        refused(server.client.post("/v1/score", json=body), 400, "text_1", "holds 2 texts and text_2 3")

    def test_encode_and_pooling(self, server: MemoryServer, oracle: Any) -> None:
        wanted = self.wanted(server, oracle, TEXTS[0])
        one = server.client.post("/encode", json={"text": TEXTS[0], "rid": "mine"}).json()
        close(one["embedding"], wanted)
        assert one["meta_info"]["id"] == "mine"
        many = server.client.post("/encode", json={"text": TEXTS[:2]}).json()
        close(many[0]["embedding"], wanted)
        close(server.client.post("/pooling", json={"input": TEXTS[0]}).json()["data"][0]["data"], wanted)

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
            ("/generate", {"text": "a"}),
            ("/v1/completions", {"prompt": "a", "stream": True}),
            ("/v1/classify", {"input": "a"}),
            ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [3]}),
        ],
    )
    def test_what_the_model_cannot_do_is_refused(self, server: MemoryServer, path: str, body: Any) -> None:
        refused(server.client.post(path, json=body), 400, "model", "its task is 'embed'")

    @pytest.mark.parametrize(
        ("body", "param", "told"),
        [
            ({"input": []}, "input", "empty"),
            ({"input": [[]]}, "input", "empty"),
            ({"input": ["a"] * 2049}, "input", "at most 2048"),
            ({"input": [[1, 100000]]}, "input", "100000"),
            ({"input": "a", "dimensions": 8}, "dimensions", "vectors have 32"),
            ({"input": "a", "encoding_format": "hex"}, "encoding_format", "base64"),
            ({"input": 3}, "input", "3"),
            ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "between 1 and 256"),
        ],
    )
    def test_bad_requests(self, server: MemoryServer, body: Any, param: str, told: str) -> None:
        refused(server.client.post("/v1/embeddings", json=body), 400, param, told)

    def test_probes_and_facts(self, server: MemoryServer) -> None:
        assert server.client.get("/health_generate").status_code == 200
        info = server.client.get("/model_info").json()
        assert (info["is_generation"], info["task"], info["pooling"]) == (False, "embed", "last")

    def test_unknown_models(self, server: MemoryServer) -> None:
        with pytest.raises(openai.NotFoundError):
            server.openai().embeddings.create(model="other", input="a")


def test_a_timeout_is_that_of_all_texts_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though each of them, when its turn comes, is done long before."""
    monkeypatch.setattr("core.server.pooled.WINDOW", 1)
    with serve(write_embedder(tmp_path)) as server:
        many = {"input": TEXTS * 500}
        reply = server.client.post("/v1/embeddings", json={**many, "timeout": 0.2})
        refused(reply, 504, "timeout", "longer than its timeout of 0.2 s")
        reply = server.client.post("/v1/embeddings", json=many, headers={"x-request-timeout": "0.2"})
        refused(reply, 504, "timeout", "longer than its timeout of 0.2 s")
        assert server.client.post("/v1/embeddings", json={"input": TEXTS, "timeout": 60}).status_code == 200


def test_mistakes_in_a_ranking_are_named_as_a_client_writes_them(tmp_path: Path) -> None:
    with serve(write_embedder(tmp_path)) as server:
        wrong = {
            "query": {"query": "", "documents": ["a"]},
            "documents": {"query": "a", "documents": []},
            "documents[1].text": {"query": "a", "documents": ["a", {"title": "b"}]},
        }
        for param, body in wrong.items():
            refused(server.client.post("/v1/rerank", json=body), 400, param, param)


def test_matryoshka_cuts_and_scales_again(tmp_path: Path) -> None:
    folder = write_embedder(tmp_path, is_matryoshka=True, matryoshka_dimensions=[8, 16])
    oracle = hidden_states(folder)
    with serve(folder) as server:
        whole = server.openai().embeddings.create(model="tiny", input="a").data[0].embedding
        for size in (8, 16, 32):
            (cut,) = server.openai().embeddings.create(model="tiny", input="a", dimensions=size).data
            close(cut.embedding, unit(np.array(whole[:size])))
        reply = server.client.post("/v1/embeddings", json={"input": "a", "dimensions": 9})
        refused(reply, 400, "dimensions", "one of 8, 16, 32")
    ids = server.context.service.tokenizer.encode("a")
    with serve(folder, matryoshka=True, normalize="off") as server:
        any_size = server.client.post("/v1/embeddings", json={"input": "a", "dimensions": 9}).json()
        close(any_size["data"][0]["embedding"], unit(oracle(ids)[-1][:9]))
        plain = server.client.post("/v1/embeddings", json={"input": "a"}).json()
        close(plain["data"][0]["embedding"], oracle(ids)[-1])
        reply = server.client.post("/v1/embeddings", json={"input": "a", "dimensions": 33})
        refused(reply, 400, "dimensions", "between 1 and 32")


class TestReward:
    """Gemma2ForSequenceClassification with one label."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        caps = {"attn_logit_softcapping": 2.0, "sliding_window": 8, "query_pre_attn_scalar": 10}
        return write_classifier(tmp_path_factory.mktemp("reward"), "gemma2", 1, **caps)

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, folder: Path) -> Iterator[MemoryServer]:
        with serve(folder) as server:
            yield server

    @pytest.fixture(scope="class")
    @classmethod
    def reward(cls, folder: Path, server: MemoryServer) -> Any:
        run, tokenizer = logits(folder, "Gemma2ForSequenceClassification"), server.context.ready_service().tokenizer
        return lambda text: float(run(tokenizer.encode(text) if isinstance(text, str) else text)[0])

    def test_encode_gives_the_reward_itself(self, server: MemoryServer, reward: Any) -> None:
        rows = server.client.post("/encode", json={"text": TEXTS}).json()
        close([row["embedding"][0] for row in rows], [reward(text) for text in TEXTS])

    def test_classify_and_score_go_through_a_sigmoid(self, server: MemoryServer, reward: Any) -> None:
        reply = server.client.post("/v1/classify", json={"input": TEXTS[0]}).json()["data"][0]
        close(reply["probs"], [1 / (1 + np.exp(-reward(TEXTS[0])))])
        assert (reply["label"], reply["num_classes"]) == ("LABEL_0", 1)
        pairs = [("one", "two"), ("Hello", " world")]
        body = {"text_1": [a for a, _ in pairs], "text_2": [b for _, b in pairs]}
        scores = [item["score"] for item in server.client.post("/v1/score", json=body).json()["data"]]
        encode = server.context.ready_service().tokenizer.encode
        joined = [reward(encode(a) + encode(b)) for a, b in pairs]  # this tokenizer puts nothing between a pair
        raw = [
            item["score"] for item in server.client.post("/v1/score", json={**body, "activation": False}).json()["data"]
        ]
        close(raw, joined)
        close(scores, 1 / (1 + np.exp(-np.array(joined))))

    def test_rerank(self, server: MemoryServer, reward: Any) -> None:
        body = {"query": "What?", "documents": TEXTS}
        results = server.client.post("/v1/rerank", json=body).json()["results"]
        values = [reward("What?" + text) for text in TEXTS]
        assert [item["index"] for item in results] == sorted(range(4), key=lambda n: -values[n])
        refused(server.client.post("/v1/rerank", json={**body, "instruct": "x"}), 400, "instruct", "scoring head")

    def test_probe(self, server: MemoryServer) -> None:
        assert server.client.get("/health_generate").status_code == 200

    def test_it_gives_neither_text_nor_vectors(self, server: MemoryServer) -> None:
        for path, body in (("/generate", {"text": "a"}), ("/v1/embeddings", {"input": "a"})):
            refused(server.client.post(path, json=body), 400, "model", "its task is 'classify'")


def test_a_classifier_of_several_labels(tmp_path: Path) -> None:
    names = {0: "bad", 1: "fair", 2: "good"}
    folder = write_classifier(tmp_path, "qwen2", 3, id2label=names, label2id={name: n for n, name in names.items()})
    run = logits(folder, "Qwen2ForSequenceClassification")
    with serve(folder) as server:
        encode = server.context.ready_service().tokenizer.encode
        data = server.client.post("/classify", json={"input": TEXTS}).json()["data"]
        raw = server.client.post("/classify", json={"input": TEXTS, "activation": False}).json()["data"]
        for text, item, bare in zip(TEXTS, data, raw, strict=True):
            wanted = run(encode(text))
            close(bare["probs"], wanted)
            close(item["probs"], np.exp(wanted) / np.exp(wanted).sum())
            assert item["label"] == bare["label"] == names[int(wanted.argmax())]
        items = {"query": "", "items": TEXTS, "apply_softmax": True}
        close(server.client.post("/v1/score", json=items).json()["scores"], [item["probs"] for item in data])
        refused(server.client.post("/v1/rerank", json={"query": "a", "documents": ["b"]}), 400, "model", "3 labels")


class TestGenerator:
    """A model that generates, asked for more."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = write_tiny_checkpoint(tmp_path_factory.mktemp("generator"), "qwen3", head_dim=16, vocab_size=420)
        with_words(folder, "yes", "no")
        return folder

    def test_alone_it_gives_no_vectors(self, folder: Path) -> None:
        with serve(folder) as server:
            refused(server.client.post("/v1/embeddings", json={"input": "a"}), 400, "model", "--pooling last")
            body = {"query": "a", "documents": ["b"]}
            refused(server.client.post("/v1/rerank", json=body), 400, "model", "--task score")

    def test_with_pooling_it_does_both(self, folder: Path) -> None:
        oracle = hidden_states(folder)
        with serve(folder, pooling="mean") as server:
            tokenizer = server.context.ready_service().tokenizer
            data = server.client.post("/v1/embeddings", json={"input": TEXTS}).json()["data"]
            for text, item in zip(TEXTS, data, strict=True):
                close(item["embedding"], unit(oracle(tokenizer.encode(text)).mean(0)))
            text = server.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3}).json()
            assert text["usage"]["completion_tokens"] >= 1

    def test_labels_behind_items(self, folder: Path) -> None:
        run = logits(folder, "Qwen3ForCausalLM")
        with serve(folder) as server:
            encode = server.context.ready_service().tokenizer.encode
            labels = [12, 300, 40]
            body: dict[str, Any] = {"query": "Is it? ", "items": TEXTS, "label_token_ids": labels}
            for first in (False, True):
                wanted = []
                for text in TEXTS:
                    row = run(encode(text + "Is it? " if first else "Is it? " + text))[-1].astype(np.float64)
                    wanted.append(np.exp(row - row.max())[labels] / np.exp(row - row.max()).sum())
                asked = {**body, "item_first": first}
                close(server.client.post("/v1/score", json=asked).json()["scores"], wanted)
                shares = server.client.post("/v1/score", json={**asked, "apply_softmax": True}).json()["scores"]
                close(shares, np.array(wanted) / np.sum(wanted, 1, keepdims=True))
            ids = {"query": [9, 10], "items": [[11, 12], [13]], "label_token_ids": [5]}
            row = run([9, 10, 13])[-1].astype(np.float64)
            close(server.client.post("/v1/score", json=ids).json()["scores"][1], [np.exp(row[5]) / np.exp(row).sum()])
            refused(server.client.post("/v1/score", json={**body, "label_token_ids": [9999]}), 400,
                    "label_token_ids", "9999")  # fmt: skip
            refused(server.client.post("/v1/score", json={"query": "a", "items": ["b"]}), 400,
                    "label_token_ids", "missing")  # fmt: skip

    def test_yes_and_no(self, folder: Path) -> None:
        run = logits(folder, "Qwen3ForCausalLM")
        with serve(folder, task="score") as server:
            service = server.context.ready_service()
            yes, no = (service.tokenizer.encode(word)[0] for word in ("yes", "no"))
            results = server.client.post("/v1/rerank", json={"query": "Q", "documents": TEXTS[:3]}).json()["results"]
            for item in results:
                user = JUDGE_USER.format(instruct=JUDGE_INSTRUCT, query="Q", document=TEXTS[item["index"]])
                text = service.tokenizer.apply_chat_template(
                    [{"role": "system", "content": JUDGE_SYSTEM}, {"role": "user", "content": user}],
                    add_generation_prompt=True,
                )
                row = run(service.tokenizer.encode(text, add_special_tokens=False))[-1].astype(np.float64)
                close(item["relevance_score"], 1 / (1 + np.exp(row[no] - row[yes])))
            other = {"query": "Q", "documents": TEXTS[:1], "instruct": "Something else"}
            (told,) = server.client.post("/v1/rerank", json=other).json()["results"]
            assert told["relevance_score"] != next(item["relevance_score"] for item in results if item["index"] == 0)


def test_the_bundled_model_gives_vectors() -> None:
    with memory_server("demo", pooling="mean", served_model_name="demo", max_running_requests=4) as server:
        close_ones, far = server.openai().embeddings.create(
            model="demo", input=["a cat sleeps", "a cat sleeps"]
        ).data, server.openai().embeddings.create(model="demo", input="17 + 4 =").data  # fmt: skip
        first, second, other = close_ones[0].embedding, close_ones[1].embedding, far[0].embedding
        close(first, second)
        assert np.dot(first, other) < 0.99
