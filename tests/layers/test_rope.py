"""Rotary embedding: reading both configuration layouts, and frequencies against transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from core.interfaces.errors import CheckpointError
from core.layers.rope import attention_factor, cos_sin_table, inverse_frequencies
from core.layers.rope_config import RopeSpec, rope_spec

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@st.composite
def scalings(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["linear", "dynamic", "yarn", "llama3"]))
    scaling: dict[str, Any] = {"rope_type": kind, "factor": draw(st.floats(1.0, 40.0))}
    original = draw(st.sampled_from([16, 100, 4096]))
    if kind == "llama3":
        low = draw(st.floats(0.5, 3.0))
        scaling |= {"low_freq_factor": low, "high_freq_factor": low + draw(st.floats(0.5, 5.0))}
    if kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = original
    if kind == "yarn":
        optional = {
            "beta_fast": st.floats(8, 64),
            "beta_slow": st.floats(0.5, 4),
            "mscale": st.floats(0.1, 2),
            "mscale_all_dim": st.floats(0.1, 2),
            "attention_factor": st.floats(0.5, 2),
            "truncate": st.booleans(),
        }
        scaling |= {k: draw(v) for k, v in optional.items() if draw(st.booleans())}
    return scaling


@settings(max_examples=60, deadline=None)
@given(scalings(), st.sampled_from([8, 12, 64, 128]), st.sampled_from([1.0, 0.5]), st.sampled_from([1e4, 5e5]))
def test_frequencies_equal_those_of_transformers(
    scaling: dict[str, Any], head_dim: int, partial: float, theta: float
) -> None:
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=8192,
        rope_parameters={**scaling, "rope_theta": theta, "partial_rotary_factor": partial},
    )
    wanted, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    spec = rope_spec(config.to_dict(), head_dim)
    torch.testing.assert_close(inverse_frequencies(spec), wanted, rtol=1e-5, atol=1e-9)
    assert attention_factor(spec) == pytest.approx(factor)
    table = cos_sin_table(spec, 50)
    angles = torch.arange(50.0)[:, None] * wanted
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, torch.cat((angles.cos(), angles.sin()), -1) * factor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [33, 50, 96])
def test_dynamic_row_is_that_of_a_sequence_which_ends_there(length: int) -> None:
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "dynamic", "factor": 3.0, "rope_theta": 100.0},
    )
    wanted, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=length)
    table = cos_sin_table(rope_spec(config.to_dict(), 16), 96)
    angles = (length - 1) * wanted
    torch.testing.assert_close(table[length - 1], torch.cat((angles.cos(), angles.sin())), atol=1e-4, rtol=1e-4)
    longer = cos_sin_table(rope_spec(config.to_dict(), 16), 200)
    assert torch.equal(longer[:96], table)  # a row depends on nothing but its position


def test_both_layouts_read_alike() -> None:
    base = {"max_position_embeddings": 512}
    four = {**base, "rope_theta": 5e5, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_type"}}
    four["rope_scaling"]["type"] = "llama3"
    five = {**base, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}}
    assert rope_spec(four, 64) == rope_spec(five, 64)
    assert rope_spec({**base, "rope_theta": 7.0}, 8) == RopeSpec(8, 7.0, 512, original_max_position=512)
    assert rope_spec({**base, "rope_scaling": None}, 8).theta == 10000.0


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (None, 1000),
        ({"type": "linear", "factor": 4}, 4000),
        ({"type": "dynamic", "factor": 2.0}, 2000),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}, 4000),
        ({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 500}, 1000),
        (LLAMA3, 1000),
    ],
)
def test_context_length(scaling: dict[str, Any] | None, length: int) -> None:
    assert rope_spec({"max_position_embeddings": 1000, "rope_scaling": scaling}, 16).context_length == length


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_scaling": {"type": "magic"}}, r"rope_scaling\.rope_type = 'magic' is unknown"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor must be a number"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, r"factor must be a number .* not '2'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "must be positive"),
        ({"rope_scaling": ["linear"]}, "rope_scaling must be an object"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "one entry per layer type"),
        ({"rope_parameters": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor must exceed"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor must be a number"),
        ({"partial_rotary_factor": 0.1}, "turns 1 dims"),
        ({"max_position_embeddings": None}, "max_position_embeddings must be a number"),
    ],
)
def test_bad_configurations_name_the_field(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        rope_spec({"max_position_embeddings": 64, **config}, 16)


def test_rope_hands_the_table_to_the_operation() -> None:
    from core.layers.rope import Rope

    seen: list[Any] = []

    def op(q: Any, k: Any, table: torch.Tensor, positions: Any) -> tuple[Any, Any]:
        seen.append((tuple(table.shape), positions))
        return k, q

    ctx: Any = SimpleNamespace(context_length=9, device=torch.device("cpu"), ops={"rope": op})
    assert Rope(RopeSpec(4, 10.0, 9), ctx)("q", "k", "p") == ("k", "q")  # type: ignore[arg-type]
    assert seen == [((9, 4), "p")]
