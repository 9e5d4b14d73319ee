"""The recipe: deterministic data, a held-out side that training never sees, and training that learns."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest


def rendered(seed: int, index: int) -> str:
    from recipe.chat import render, training_chat

    return "".join(text for text, _ in render(training_chat(seed, index, 1024)))


def test_stream_is_deterministic() -> None:
    first = [rendered(3, i) for i in range(200)]
    assert first == [rendered(3, i) for i in range(200)]
    assert first != [rendered(4, i) for i in range(200)]


def test_template_writes_what_was_trained(tokenizer: Any) -> None:
    from recipe.chat import render, training_chat

    for index in range(300):
        chat = training_chat(0, index, 1024)
        text = "".join(piece for piece, _ in render(chat))
        if chat.thinking:
            options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
            prompt = tokenizer.apply_chat_template(chat.messages[:-1], tools=chat.tools or None, **options)
            assert text.startswith(prompt)
        else:
            assert tokenizer.apply_chat_template(chat.messages, tools=chat.tools or None, tokenize=False) == text


def test_pieces_tokenize_like_the_whole(tokenizer: Any) -> None:
    from recipe.chat import render, training_chat

    for index in range(200):
        pieces = [text for text, _ in render(training_chat(0, index, 1024))]
        apart = [i for text in pieces for i in tokenizer(text)["input_ids"]]
        assert apart == tokenizer("".join(pieces))["input_ids"]


def test_heldout_is_disjoint() -> None:
    from recipe import facts, talk
    from recipe.simple import operands, pair_held_out
    from recipe.words import CITIES, NAMES, Lists

    train, heldout = Lists("train"), Lists("heldout")
    assert not set(train.names) & set(heldout.names)
    assert set(train.names) | set(heldout.names) == set(NAMES)
    assert not set(train.cities) & set(heldout.cities)
    assert set(train.cities) | set(heldout.cities) == set(CITIES)
    rng = Random(0)
    for _ in range(2000):
        a, b = operands(rng, "train")
        assert not pair_held_out(a, b)
        assert not pair_held_out(b, a)
        assert pair_held_out(*operands(rng, "heldout"))
    trained = {facts.known(rng, "train")[0] for _ in range(20_000)}
    assert not trained & {facts.known(rng, "heldout")[0] for _ in range(2000)}
    for attribute in talk.ATTRIBUTES:
        assert attribute.ask[-1] not in attribute.ask[:-1]
        assert attribute.tell[-1] not in attribute.tell[:-1]
    for phrasings, _ in talk.INTENTS.values():
        assert phrasings[-1] not in phrasings[:-1]


def test_no_held_out_sum_in_the_training_stream() -> None:
    """Also not by way of tools, reasoning, word problems or chance."""
    from recipe.simple import pair_held_out

    seen = 0
    for index in range(4000):
        for a, b, result in re.findall(r"(?<![\d.*+/-] )\b(\d{1,2}) \+ (\d{1,2}) = (\d+)\b(?!,)", rendered(5, index)):
            if int(a) >= 10 and int(b) >= 10 and int(a) + int(b) == int(result):
                seen += 1
                assert not pair_held_out(int(a), int(b)), (a, b)
    assert seen > 100


def test_every_item_accepts_its_right_answer_and_no_other() -> None:
    from recipe.chat import answer_text
    from recipe.tasks import SKILLS, items, right

    for skill in SKILLS:
        for chat in items(skill)[:20]:
            text = answer_text(chat.messages[-1])
            assert right(chat, f"hm\n</think>\n\n{text}" if chat.thinking else text), skill
            assert not right(chat, "hm\n</think>\n\nBlah." if chat.thinking else "Blah."), skill


def test_rows_depend_on_the_seed_alone(folder: Path) -> None:
    from recipe.data import Rows

    rows = [Rows(12, 512, 3, seed, folder / "tokenizer.json") for seed in (1, 1, 2)]
    for order, block in zip(((0, 1, 2), (2, 0, 1), (0, 1, 2)), rows, strict=True):
        for worker in order:
            block.fill(worker)
    assert np.array_equal(rows[0].tokens, rows[1].tokens)
    assert np.array_equal(rows[0].weights, rows[1].weights)
    assert not np.array_equal(rows[0].tokens, rows[2].tokens)
    assert rows[0].num_filled() == 12
    padding = rows[0].chats == 255
    assert padding.mean() < 0.2
    assert not rows[0].weights[padding].any()


def test_compact_model_is_qwen3(tmp_path: Path) -> None:
    import torch
    from recipe.model import SMALL, ChatModel, dense_mask, export
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    mine = ChatModel(SMALL)
    export(mine, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for parameter in mine.parameters():
        parameter.data = parameter.data.bfloat16().float()
    tokens = torch.randint(0, 4096, (2, 80))
    with torch.no_grad():
        ours = mine(tokens, dense_mask(torch.zeros_like(tokens)))
        assert torch.allclose(ours, theirs(tokens).logits, atol=1e-4)
        # A chat in a row sees itself only.
        chats = torch.zeros_like(tokens)
        chats[:, 50:] = 1
        packed = mine(tokens, dense_mask(chats))
    assert torch.allclose(packed[:, :50], ours[:, :50], atol=1e-4)
    assert not torch.allclose(packed[:, 60:], ours[:, 60:], atol=1e-2)


@pytest.mark.slow
def test_small_training_learns(folder: Path, tmp_path: Path) -> None:
    from recipe.train import arguments, train

    argv = ["--tokenizer", str(folder), "--out", str(tmp_path), "--small", "--steps", "20", "--log-every", "5"]
    figures = train(arguments(argv))
    assert figures["steps"] == 20
    assert figures["losses"][-1] < figures["losses"][0] - 0.3
    assert (tmp_path / "model.safetensors").stat().st_size > 100_000
