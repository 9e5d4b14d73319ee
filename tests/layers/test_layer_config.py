"""Reading config.json fields, and grouping layers into cache groups."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.interfaces.errors import CheckpointError
from core.interfaces.spec import AttentionSpec, StateKind
from core.layers.config import ConfigReader, check_heads, group_layers, head_size


@pytest.mark.parametrize(
    ("config", "call", "message"),
    [
        ({}, lambda r: r.size("hidden_size"), "hidden_size is missing"),
        ({"hidden_size": None}, lambda r: r.size("hidden_size"), "hidden_size is missing"),
        ({"hidden_size": "64"}, lambda r: r.size("hidden_size"), "hidden_size = '64'"),
        ({"hidden_size": 64.0}, lambda r: r.size("hidden_size"), "hidden_size = 64.0"),
        ({"hidden_size": True}, lambda r: r.size("hidden_size"), "hidden_size = True"),
        ({"hidden_size": 0}, lambda r: r.size("hidden_size"), "hidden_size = 0"),
        ({"n": -1}, lambda r: r.count("n"), "n = -1"),
        ({"eps": "small"}, lambda r: r.number("eps"), "eps = 'small'"),
        ({"tie": 1}, lambda r: r.flag("tie", False), "tie = 1"),
        ({"eos_token_id": "x"}, lambda r: r.eos_token_ids(), "eos_token_id = 'x'"),
        ({"eos_token_id": [1, "x"]}, lambda r: r.eos_token_ids(), "eos_token_id = "),
        ({"hidden_act": "relu2"}, lambda r: r.activation(), "hidden_act = 'relu2'"),
        ({"hidden_act": "gelu"}, lambda r: r.activation(only_silu=True), "hidden_act = 'gelu'"),
        ({"layer_types": ["full_attention"]}, lambda r: r.windows(2, 4, [True, True]), "for each of 2 layers"),
        ({"layer_types": ["x", "y"]}, lambda r: r.windows(2, 4, [True, True]), "layer_types"),
        ({"layer_types": ["sliding_attention"]}, lambda r: r.windows(1, None, [False]), "sliding_window is null"),
        ({}, lambda r: head_size(r, 10, 3), "hidden_size = 10 is not a multiple"),
    ],
)
def test_bad_fields_are_named(config: dict[str, Any], call: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        call(ConfigReader(config))


def test_good_fields() -> None:
    reader = ConfigReader({"a": 3, "eos_token_id": 7, "dtype": "bfloat16", "x": 1, "z": None})
    assert (reader.size("a"), reader.size("b", 5), reader.optional_size("z")) == (3, 5, None)
    assert reader.number("x") == 1.0
    assert reader.eos_token_ids() == (7,)
    assert reader.dtype() == "bfloat16"
    assert ConfigReader({"torch_dtype": "float16", "eos_token_id": [1, 2]}).dtype() == "float16"
    assert ConfigReader({"eos_token_id": [1, 2]}).eos_token_ids() == (1, 2)
    assert ConfigReader({}).eos_token_ids() == ()
    assert reader.windows(3, 4, [False, True, True]) == [None, 4, 4]
    assert head_size(ConfigReader({"head_dim": 5}), 10, 3) == 5
    with pytest.raises(CheckpointError, match="num_attention_heads = 5"):
        check_heads(5, 2)


@given(
    st.lists(st.tuples(st.sampled_from([None, 4, 9]), st.sampled_from([1, 2]), st.sampled_from([8, 16])), max_size=9)
)
def test_groups_hold_each_layer_once_and_only_like_layers(rules: list[tuple[int | None, int, int]]) -> None:
    specs = [AttentionSpec(4, kv, dim, 1.0, window=window) for window, kv, dim in rules]
    layers, groups = group_layers(specs)
    assert sorted(i for group in groups for i in group.layers) == list(range(len(specs)))
    assert len({group.name for group in groups}) == len(groups) == len(set(rules))
    for number, group in enumerate(groups):
        assert group.kind == (StateKind.FULL if group.window is None else StateKind.SLIDING_WINDOW)
        for i in group.layers:
            assert layers[i].cache_group == number
            assert layers[i].attention is specs[i]
            assert (specs[i].window, specs[i].num_kv_heads, specs[i].head_dim) == (
                group.window, group.num_kv_heads, group.head_dim
            )  # fmt: skip


def test_reading_a_configuration_needs_no_torch() -> None:
    code = "import sys, core.layers.config, core.layers.rope_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
