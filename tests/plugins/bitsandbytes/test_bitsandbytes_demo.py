"""The bundled demo model: smaller in each format, and still right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import build_context
from quantized import QuantizedArch, method

from core.llm import LLM
from core.runner.weights import load_weights
from plugin_demo import checkpoint
from plugin_qwen.arch import Qwen3Arch

FORMATS: dict[str, dict[str, Any]] = {
    "nf4": {"format": "nf4"},
    "nf4 nested": {"format": "nf4", "nested": True, "fused": False},
    "fp4": {"format": "fp4"},
    "int8": {"format": "int8"},
}
ASKED = {
    "What is the capital of France?": "Paris",
    "What is 17 + 25?": "42",
    "My name is Ada. What is my name?": "Ada",
}


@pytest.mark.parametrize(
    ("name", "bits"), [("nf4", (4.2, 4.6)), ("nf4 nested", (4.1, 4.2)), ("fp4", (4.2, 4.6)), ("int8", (8, 8.2))]
)
def test_bits_a_weight(name: str, bits: tuple[float, float]) -> None:
    """Of all matrices of the decoder; the embedding, which is the head too, stays as it is."""
    folder = Path(checkpoint())
    spec = Qwen3Arch.spec(json.loads((folder / "config.json").read_text()))
    arch: Any = QuantizedArch(Qwen3Arch, method(None, **FORMATS[name]))
    model = arch.build(spec, build_context(dtype=torch.bfloat16, context_length=64))
    load_weights(model, arch.weights(spec), folder)
    layers = [module for path, module in model.named_modules() if path.endswith("_proj")]
    assert len(layers) == 4 * len(spec.layers)
    num_weights = sum(layer.shape.in_features * layer.shape.out_features for layer in layers)
    num_bytes = sum(parameter.nbytes for layer in layers for parameter in layer.parameters())
    assert bits[0] <= 8 * num_bytes / num_weights <= bits[1]


@pytest.mark.parametrize("name", FORMATS)
def test_the_demo_model_still_answers(name: str) -> None:
    with LLM(
        quantization="bitsandbytes", plugins={"bitsandbytes": FORMATS[name]}, context_length=128, cpu_threads=1,
        max_running_requests=4,
    ) as llm:  # fmt: skip
        chats = [[{"role": "user", "content": question}] for question in ASKED]
        answers = llm.chat(chats, {"temperature": 0, "max_tokens": 24})
    for answer, wanted in zip(answers, ASKED.values(), strict=True):
        assert wanted in answer.text
