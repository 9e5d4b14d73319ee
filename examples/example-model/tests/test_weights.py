"""What the contract cannot know: older checkpoints name and hold more than transformers writes today."""

from __future__ import annotations

import pytest
from example_model.arch import Gpt2Arch
from test_contract import SMALL

from core.interfaces.errors import CheckpointError


def test_bare_names_and_masks_of_old_checkpoints() -> None:
    rules = Gpt2Arch.weights(Gpt2Arch.spec(SMALL))
    sources = {rule.source for rule in rules.rules}
    assert {"wte", "transformer.wte", "h.{layer}.attn.c_attn"} <= sources
    assert list(rules.ignored.values()) == ["the causal mask, which attention knows by itself"]


def test_cross_attention_is_refused() -> None:
    with pytest.raises(CheckpointError, match="add_cross_attention"):
        Gpt2Arch.spec({**SMALL, "add_cross_attention": True})
