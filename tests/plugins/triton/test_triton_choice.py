"""Which attention core chooses where Triton runs."""

from __future__ import annotations

import pytest

from core.interfaces.spec import AttentionSpec, CacheGroupSpec, LayerSpec, ModelSpec, StateKind
from core.registry.catalog import Catalog
from core.registry.select_attention import choose_attention


@pytest.mark.parametrize(("invariant", "name"), [(False, "triton"), (True, "triton_invariant")])
def test_deterministic_mode_takes_the_kernel_that_minds_no_neighbours(invariant: bool, name: str) -> None:
    layer = AttentionSpec(num_heads=8, num_kv_heads=2, head_dim=128, scale=0.1)
    group = CacheGroupSpec("all", StateKind.FULL, (0,), 2, 128, 128)
    spec = ModelSpec("AnyForCausalLM", 100, 8, (LayerSpec(layer, cache_group=0),), (group,), context_length=4096)
    (choice,), _ = choose_attention(
        "auto", {"nvidia": ("triton",)}, spec, dtype="bfloat16", hardware="nvidia", page_size=None, wished_page_size=16,
        wish_reason="", catalog=Catalog.scan(), invariant=invariant,
    )  # fmt: skip
    assert choice.name == name
