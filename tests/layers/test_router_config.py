"""RouterSpec: numbers that do not fit are named as config.json names them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.interfaces.errors import CheckpointError, WeightError
from core.interfaces.spec import AttentionSpec, StateKind
from core.layers.config import group_layers
from core.layers.router import Float32Router
from core.layers.router_config import RouterSpec

from .test_tensor_parallel import context

NAMES = {"experts": "n_routed_experts", "top_k": "num_experts_per_tok"}
GROUPED = RouterSpec(12, 3, "sigmoid", num_groups=4, topk_groups=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_groups": 5}, "n_group = 5 does not divide n_routed_experts = 12"),
        ({"topk_groups": 5}, "topk_group = 5 exceeds n_group = 4"),
        ({"num_groups": 12}, "n_group = 12 leaves groups of 1 of n_routed_experts = 12"),
        ({"top_k": 7}, "num_experts_per_tok = 7 exceeds the 6 experts of topk_group = 2 groups"),
        ({"top_k": 13, "num_groups": 1, "topk_groups": 1}, "num_experts_per_tok = 13 exceeds n_routed_experts = 12"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, int], message: str) -> None:
    GROUPED.check(**NAMES)
    with pytest.raises(CheckpointError, match=message):
        replace(GROUPED, **changes).check(**NAMES)


def test_groups_of_one_have_a_best() -> None:
    replace(GROUPED, num_groups=12, topk_groups=3, group_score="max").check(**NAMES)


def test_float32_router_takes_only_its_own_tensors() -> None:
    specs = [RouterSpec(3, 1, correction_bias=bias, float32=True) for bias in (False, True)]
    plain, biased = (Float32Router("gate", 4, spec, context()) for spec in specs)
    assert plain.expected() < biased.expected()
    biased.load("e_score_correction_bias", "", torch.ones(3))
    with pytest.raises(WeightError, match="gate has no e_score_correction_bias"):
        plain.load("e_score_correction_bias", "", torch.ones(3))
    with pytest.raises(WeightError, match=r"shape \[4\], expected \[3\]"):
        biased.load("e_score_correction_bias", "", torch.ones(4))


def test_layers_with_the_same_latent_share_a_group() -> None:
    latent = AttentionSpec(4, 1, 10, 1.0, 6, latent_dim=8, rope_dim=2)
    other_heads = AttentionSpec(4, 1, 12, 1.0, 5, latent_dim=8, rope_dim=2)  # the same is cached of it
    full = AttentionSpec(4, 1, 8, 1.0, 2)
    layers, groups = group_layers([latent, full, other_heads])
    assert [layer.cache_group for layer in layers] == [0, 1, 0]
    assert [(g.name, g.kind, g.num_kv_heads, g.head_dim, g.v_head_dim) for g in groups] == [
        ("latent", StateKind.MLA_LATENT, 1, 8, 2),
        ("full", StateKind.FULL, 1, 8, 2),
    ]
    assert groups[0].elements_per_token(4) == 2 * 10
