"""Scales of cached keys and values among a checkpoint's tensors: which layers, which numbers, what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from core.interfaces.errors import WeightError
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, LayerSpec, ModelSpec, StateKind
from core.runner.kv_scales import KvScaleReader, KvScales, describe

NAMES = {
    r"layers\.(?P<layer>[0-9]+)\.k": "k", r"layers\.(?P<layer>[0-9]+)\.v": "v", r"layers\.(?P<layer>[0-9]+)\.kv": "kv",
}  # fmt: skip
FILE = Path("model.safetensors")


def spec(*, latent: bool = False) -> ModelSpec:
    """Three layers, of which the second caches nothing; three KV heads."""
    rule = AttentionSpec(1, 1, 24, 1.0, 16, latent_dim=32, rope_dim=8) if latent else AttentionSpec(6, 3, 16, 1.0, 16)
    layers = (LayerSpec(rule, 0), LayerSpec(None, 0), LayerSpec(rule, 0))
    kind = StateKind.MLA_LATENT if latent else StateKind.FULL
    group = CacheGroupSpec("kv", kind, (0, 2), rule.num_kv_heads, 16, 16)
    return ModelSpec("A", 8, 8, layers, (group,), 8)


def read(tensors: Mapping[str, torch.Tensor], *, latent: bool = False, wanted: bool = True) -> KvScales:
    reader = KvScaleReader(NAMES, spec(latent=latent), wanted=wanted)
    return reader.read((FILE, name, tensor) for name, tensor in tensors.items() if reader.place(name) is not None)


def test_places() -> None:
    reader = KvScaleReader(NAMES, spec(), wanted=True)
    assert reader.place("layers.0.k") == (0, "k")
    assert reader.place("layers.2.kv") == (2, "kv")
    assert reader.place("layers.1.k") is None, "that layer caches nothing"
    assert reader.place("layers.7.k") is None
    assert reader.place("model.layers.0.k") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_of_layers(dtype: torch.dtype) -> None:
    tensors = {
        "layers.0.k": torch.tensor(0.5),
        "layers.0.v": torch.tensor([0.25]),
        "layers.2.kv": torch.tensor([[3.0]]),
    }
    found = read({name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert found == KvScales({0: (0.5, 0.25), 2: (3.0, 3.0)}, present=True, by_head=False)


def test_the_largest_of_heads() -> None:
    found = read({"layers.0.k": torch.tensor([0.5, 2.0, 1.0]).view(3, 1, 1), "layers.0.v": torch.full((3,), 0.25)})
    assert found == KvScales({0: (2.0, 0.25)}, present=True, by_head=True)
    assert not read({"layers.0.k": torch.ones(3), "layers.0.v": torch.ones(3)}).by_head


def test_a_latent_needs_one() -> None:
    assert read({"layers.0.k": torch.tensor(0.5)}, latent=True).by_layer == {0: (0.5, 0.5)}
    with pytest.raises(WeightError, match="scale of cached values of layer 0 and none of its keys"):
        read({"layers.0.v": torch.tensor(0.5)}, latent=True)


def test_the_same_number_twice_is_one() -> None:
    found = read({"layers.0.kv": torch.tensor(0.5), "layers.0.k": torch.tensor(0.5)})
    assert found.by_layer == {0: (0.5, 0.5)}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"layers.0.k": torch.tensor(0.5)}, "scale of cached keys of layer 0 and none of its values"),
        (
            {"layers.2.k": torch.ones(2)},
            r"model.safetensors: tensor layers.2.k: shape \[2\] of float32, expected 1 num",
        ),
        ({"layers.2.k": torch.ones(1, dtype=torch.int32)}, "of int32, expected 1 number, or 3, one for each KV head"),
        ({"layers.0.k": torch.zeros(1)}, "tensor layers.0.k is 0.0; a scale is greater than 0"),
        ({"layers.0.k": torch.tensor([1.0, -1.0, 1.0])}, "is -1.0"),
        ({"layers.0.k": torch.tensor(float("nan"))}, "is nan"),
        ({"layers.0.k": torch.tensor(float("inf"))}, "is inf"),
        ({"layers.0.kv": torch.tensor(1.0), "layers.0.v": torch.tensor(2.0)}, "layers.0.kv and layers.0.v both give"),
    ],
)
def test_what_is_wrong_is_named_with_the_way_out(tensors: Mapping[str, torch.Tensor], says: str) -> None:
    with pytest.raises(WeightError, match=says) as caught:
        read(tensors)
    assert "--kv-cache-dtype" in str(caught.value.hint)
    assert read(tensors, wanted=False) == KvScales(present=True), "nobody looks at what is not used"


def test_lines_of_the_log() -> None:
    some, none = KvScales({0: (1.0, 1.0)}, present=True), KvScales()
    assert describe(none, spec(), "bfloat16", eight_bits=False) == ""
    assert "not used: the cache is kept in bfloat16" in describe(
        KvScales(present=True), spec(), "bfloat16", eight_bits=False
    )
    assert "have no scales" in describe(none, spec(), "float8_e4m3fn", eight_bits=True)
    text = describe(some, spec(), "float8_e4m3fn", eight_bits=True)
    assert "in 1 layers" in text
    assert "layers 2 have none there" in text
