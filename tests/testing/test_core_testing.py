"""What core.testing offers to plugin authors does what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.interfaces.errors import CapacityError, CheckpointError, ConfigError
from core.interfaces.spec import AttentionSpec
from core.testing.byte_tokenizer import ByteTokenizer
from core.testing.checkpoint import SPECIAL_TOKENS, write_tiny_checkpoint, write_tiny_tokenizer
from core.testing.dense_attention import attend
from core.testing.mock_hardware import MockAsyncHardware, MockHardware
from core.testing.mock_model import MockConfig, MockModel, reference_greedy, reference_logits
from core.testing.mock_runner import mock_runner_config


@given(st.text())
def test_byte_tokenizer_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    clean = text.encode("utf-8", "replace").decode()
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == clean


def test_byte_tokenizer_special_tokens_and_template() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "é"}])
    assert ids[0] == tokenizer.im_start_id
    assert ids.count(tokenizer.im_end_id) == 1
    assert tokenizer.decode(ids) == "user\né\nassistant\n"
    assert tokenizer.encode("a", add_special_tokens=True) == [tokenizer.bos_token_id, 97]
    assert tokenizer.decode([0xC3]) == "\ufffd"
    with pytest.raises(ValueError, match="260"):
        tokenizer.decode([260])


@given(st.lists(st.integers(0, 96), min_size=2, max_size=20), st.data())
def test_mock_logits_depend_on_every_visible_token_and_its_place(tokens: list[int], data: st.DataObject) -> None:
    config = MockConfig(vocab_size=97)
    changed = list(tokens)
    changed[data.draw(st.integers(0, len(tokens) - 1))] += 1
    assert not np.array_equal(reference_logits(config, tokens), reference_logits(config, changed))
    if tokens[0] != tokens[1]:
        swapped = [tokens[1], tokens[0], *tokens[2:]]
        assert not np.array_equal(reference_logits(config, tokens), reference_logits(config, swapped))


def test_mock_window_forgets() -> None:
    config = MockConfig(vocab_size=97, windows=(3,))
    assert np.array_equal(reference_logits(config, [1, 2, 3, 4]), reference_logits(config, [9, 2, 3, 4]))
    assert not np.array_equal(reference_logits(config, [1, 2, 3, 4]), reference_logits(config, [1, 9, 3, 4]))


def test_mock_text_is_not_trivial() -> None:
    assert len(set(reference_greedy(MockConfig(), [1, 2, 3], 50))) > 20


def test_mock_spec_round_trip_and_errors() -> None:
    config = MockConfig(vocab_size=50, windows=(None, 8), context_length=99, eos_token_ids=(3,))
    spec = MockModel.spec(json.loads(json.dumps(config.hf_config())))
    assert spec.arch == config
    assert [group.window for group in spec.cache_groups] == [None, 8]
    with pytest.raises(CheckpointError, match="vocab_size"):
        MockModel.spec({})
    runner = mock_runner_config(config)
    with pytest.raises(ConfigError, match="bfloat16"):
        MockModel.build(spec, type("Ctx", (), {"dtype": torch.bfloat16, "device": runner.tp})())  # type: ignore[arg-type]


def test_mock_hardware_budget() -> None:
    hardware = MockHardware(memory_bytes=1000)
    assert hardware.probe().available
    assert hardware.memory().total_bytes == 1000
    assert hardware.kv_budget_bytes(0.5, None) == 500
    assert hardware.kv_budget_bytes(0.5, 900) == 900
    with pytest.raises(CapacityError, match="1001"):
        hardware.kv_budget_bytes(0.5, 1001)


def test_mock_events_belong_to_the_stream() -> None:
    hardware = MockAsyncHardware()
    with pytest.raises(RuntimeError, match="outside"):
        hardware.record_event()
    with hardware.stream():
        event = hardware.record_event()
    hardware.wait_event(event)
    assert event.waited


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_dense_attention_is_torch_attention(num_kv_heads: int) -> None:
    spec = AttentionSpec(4, num_kv_heads, 8, scale=0.3)
    q, k, v = torch.randn(3, 4, 8), torch.randn(7, num_kv_heads, 8), torch.randn(7, num_kv_heads, 5)
    visible = torch.arange(7)[None] <= torch.arange(4, 7)[:, None]
    oracle = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None],
        attn_mask=visible, scale=0.3, enable_gqa=True,
    )[0].transpose(0, 1)  # fmt: skip
    torch.testing.assert_close(attend(q, k, v, visible, spec), oracle)


def test_dense_attention_softcap_and_sinks() -> None:
    q, k, v = torch.randn(1, 1, 4), torch.randn(2, 1, 4), torch.randn(2, 1, 4)
    spec = AttentionSpec(1, 1, 4, scale=2.0, softcap=1.5, has_sinks=True)
    scores = 1.5 * torch.tanh(2.0 * (k[:, 0] @ q[0, 0]) / 1.5)
    weights = scores.exp() / (scores.exp().sum() + torch.exp(torch.tensor(0.7)))
    out = attend(q, k, v, torch.ones(1, 2, dtype=torch.bool), spec, torch.tensor([0.7]))
    torch.testing.assert_close(out[0, 0], weights @ v[:, 0])


def test_tiny_tokenizer_is_deterministic_and_reads_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    sizes = [write_tiny_tokenizer(tmp_path / name) for name in ("a", "b")]
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert len(tokenizer) == sizes[0] <= 400
    text = "Hello 🙂 Köln\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )  # fmt: skip
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token_id == SPECIAL_TOKENS.index("<|im_end|>")


def test_tiny_checkpoint_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_tiny_checkpoint(tmp_path / "m", "llama", seed=3, num_hidden_layers=1, max_shard_size="50KB")
    assert (folder / "model.safetensors.index.json").exists()
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (1, 64)
    again = write_tiny_checkpoint(tmp_path / "n", "llama", seed=3, num_hidden_layers=1)
    other = write_tiny_checkpoint(tmp_path / "o", "llama", seed=4, num_hidden_layers=1)
    ids = torch.tensor([[1, 2, 3]])
    a, b, c = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (folder, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
