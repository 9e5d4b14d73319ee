"""plugin-gemma as core sees it, and Gemma 2 through the whole engine beside transformers."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from core.interfaces.errors import CheckpointError
from core.interfaces.spec import StateKind
from core.llm import LLM
from core.testing.checkpoint import write_tiny_checkpoint
from plugin_gemma.arch import Gemma2Arch, Gemma2ClassifierArch

# config.json of Gemma 2 9B in the layout of transformers 4.
GEMMA2_9B: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
    "torch_dtype": "float32",
    "vocab_size": 256000,
}
# Caps and a window that are felt at this size.
TINY: dict[str, Any] = {
    "head_dim": 16, "num_hidden_layers": 3, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0,
    "sliding_window": 12, "query_pre_attn_scalar": 24,
}  # fmt: skip
NUM_TOKENS = 64


def test_entry_points_and_manifest_name_the_same() -> None:
    points = {p.name: p.load() for p in distribution("plugin-gemma").entry_points if p.group == "core.models"}
    assert points == {"Gemma2ForCausalLM": Gemma2Arch, "Gemma2ForSequenceClassification": Gemma2ClassifierArch}
    manifest = tomllib.loads((files("plugin_gemma") / "core_plugin.toml").read_text())
    assert {row["name"] for row in manifest["plugin"]} == set(points)


def test_reads_gemma2_9b() -> None:
    spec = Gemma2Arch.spec(GEMMA2_9B)
    assert [group.kind for group in spec.cache_groups] == [StateKind.SLIDING_WINDOW, StateKind.FULL]
    assert spec.cache_groups[0].layers == tuple(range(0, 42, 2))
    rule = spec.layers[0].attention
    assert rule is not None
    assert (rule.window, rule.softcap, rule.scale, rule.head_dim) == (4096, 50.0, 1 / 16, 256)
    assert spec.layers[1].attention is not None
    assert spec.layers[1].attention.window is None
    assert (spec.arch.logit_softcap, spec.tie_word_embeddings, spec.task) == (30.0, True, "generate")
    bare = {key: value for key, value in GEMMA2_9B.items() if "softcapping" not in key}
    assert Gemma2Arch.spec(bare) == spec
    off = Gemma2Arch.spec({**GEMMA2_9B, "attn_logit_softcapping": None, "final_logit_softcapping": None})
    assert (off.layers[0].attention.softcap, off.arch.logit_softcap) == (None, None)  # type: ignore[union-attr]
    reward = Gemma2ClassifierArch.spec({**GEMMA2_9B, "id2label": {"0": "LABEL_0"}})
    assert (reward.task, reward.labels) == ("classify", ("LABEL_0",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0"),
        ({"attn_logit_softcapping": -1.0}, "attn_logit_softcapping"),
        ({"hidden_activation": "relu"}, "hidden_activation = 'relu'"),
        ({"id2label": {"1": "x"}}, "id2label"),
        ({"sliding_window": 0}, "sliding_window = 0"),
    ],
)
def test_bad_field_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Gemma2ClassifierArch.spec({**GEMMA2_9B, **changes})


def test_the_plugin_itself_needs_no_torch() -> None:
    code = "import sys, plugin_gemma.arch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("gemma"), "gemma2", **TINY)


@pytest.fixture(scope="module")
def references(folder: Path) -> list[tuple[list[int], list[int]]]:
    """(prompt, 64 greedy tokens) by transformers, in its own attention and without a cache of its own."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(3)
    made = []
    for length in (3, 30):
        tokens = torch.randint(10, 300, (length,), generator=generator).tolist()
        for _ in range(NUM_TOKENS):
            with torch.inference_mode():
                tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        made.append((tokens[:length], tokens[length:]))
    return made


@pytest.mark.parametrize("backend", ["torch_native", "cpu_native"])
def test_greedy_texts_equal_those_of_transformers(
    folder: Path, references: list[tuple[list[int], list[int]]], backend: str
) -> None:
    """With chunks smaller than the prompt and both prompts in a batch, then again with their prefixes cached."""
    options: dict[str, Any] = {"page_size": 8, "max_total_tokens": 2048, "dtype": "float32", "hooks": ("none",)}
    with LLM(str(folder), device="cpu", attention_backend=backend, chunked_prefill_size=16, **options) as llm:
        greedy = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
        for again in (False, True):
            outputs = llm.generate([prompt for prompt, _ in references], greedy)
            for output, (_, wanted) in zip(outputs, references, strict=True):
                assert output.token_ids == wanted
            assert bool(outputs[1].cached_tokens) == again
