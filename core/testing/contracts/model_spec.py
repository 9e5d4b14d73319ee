"""What a ModelSpec must fulfil whatever the architecture. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from core.interfaces.spec import AttentionSpec, CacheGroupSpec, LayerSpec, ModelSpec, StateKind
from core.layers.config import DTYPES


def check_pure(value: Any, where: str = "spec") -> None:
    """Numbers, texts, enumerations, tuples, sets, mappings and frozen dataclasses of these: nothing that a process
    could not send to another or that changes behind core's back."""
    if value is None or isinstance(value, bool | int | float | str | Enum):
        return
    if isinstance(value, tuple | frozenset):
        for index, item in enumerate(value):
            check_pure(item, f"{where}[{index}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_pure(key, f"{where} key {key!r}")
            check_pure(item, f"{where}[{key!r}]")
    elif is_dataclass(value) and not isinstance(value, type):
        assert value.__dataclass_params__.frozen, f"{where} is a {type(value).__name__}, which is not frozen"  # type: ignore[attr-defined]
        for field in fields(value):
            check_pure(getattr(value, field.name), f"{where}.{field.name}")
    else:
        raise AssertionError(f"{where} is a {type(value).__name__}; a spec holds nothing but plain data")


def check_consistent(spec: ModelSpec) -> None:
    """Sizes are positive, layers and cache groups name each other, and groups say of their layers what is so."""
    for name in ("vocab_size", "hidden_size", "context_length"):
        value = getattr(spec, name)
        assert isinstance(value, int), f"spec.{name} is {value!r}"
        assert value >= 1, f"spec.{name} is {value}"
    assert spec.layers, "the spec has no layers"
    assert spec.dtype in DTYPES, f"spec.dtype is {spec.dtype!r}, no torch floating-point type"
    for token in spec.eos_token_ids:
        assert 0 <= token < spec.vocab_size, f"eos token {token} is outside the vocabulary of {spec.vocab_size}"
    names = [group.name for group in spec.cache_groups]
    assert len(set(names)) == len(names), f"cache groups share a name: {names}"
    owners: dict[int, int] = {}
    for number, group in enumerate(spec.cache_groups):
        assert group.layers, f"cache group {group.name!r} has no layers"
        for index in group.layers:
            assert 0 <= index < len(spec.layers), f"cache group {group.name!r} has a layer {index} that is not there"
            assert index not in owners, f"layer {index} is in two cache groups"
            owners[index] = number
            _check_layer(index, spec.layers[index], number, group)
    for index, layer in enumerate(spec.layers):
        if layer.attention is not None:
            assert index in owners, f"layer {index} attends and is in no cache group"


def _check_layer(index: int, layer: LayerSpec, number: int, group: CacheGroupSpec) -> None:
    where = f"layer {index} in cache group {group.name!r}"
    assert layer.cache_group == number, f"{where} says that its group is number {layer.cache_group}, not {number}"
    if group.kind is StateKind.RECURRENT:
        assert group.state_elements >= 1, f"{where}: a recurrent state has state_elements"
        return
    rule = layer.attention
    assert rule is not None, f"{where}: state of kind {group.kind} without attention"
    check_attention(rule, where)
    if group.kind is StateKind.MLA_LATENT:
        stated = (group.num_kv_heads, group.head_dim, group.v_head_dim)
        wanted = (1, rule.latent_dim, rule.rope_dim)
        assert rule.latent_dim, f"{where}: its attention has no latent_dim"
    else:
        stated = (group.num_kv_heads, group.head_dim, group.v_head_dim)
        wanted = (rule.num_kv_heads, rule.head_dim, rule.v_head_dim)
        assert not rule.latent_dim, f"{where}: a latent is kept in a group of kind {StateKind.MLA_LATENT}"
    assert stated == wanted, f"{where}: group says heads and sizes {stated}, the layer {wanted}"
    window = rule.window if group.kind is StateKind.SLIDING_WINDOW else None
    assert group.window == window, f"{where}: group says window {group.window}, the layer {rule.window}"
    if group.kind is StateKind.SLIDING_WINDOW:
        assert window is not None, f"{where}: a sliding window without a size"
    elif group.kind is StateKind.FULL:
        assert rule.window is None, f"{where}: keeps everything, yet sees a window of {rule.window}"


def check_attention(rule: AttentionSpec, where: str) -> None:
    for name in ("num_heads", "num_kv_heads", "head_dim", "v_head_dim"):
        value = getattr(rule, name)
        assert isinstance(value, int), f"{where}: {name} is {value!r}"
        assert value >= 1, f"{where}: {name} is {value}"
    assert rule.num_heads % rule.num_kv_heads == 0, (
        f"{where}: {rule.num_heads} query heads do not share {rule.num_kv_heads} KV heads evenly"
    )
    assert rule.scale > 0, f"{where}: scale is {rule.scale}"
    assert rule.window is None or rule.window >= 1, f"{where}: window is {rule.window}"
    assert rule.softcap is None or rule.softcap > 0, f"{where}: softcap is {rule.softcap}"
    assert 0 <= rule.rope_dim <= rule.head_dim, f"{where}: rope_dim is {rule.rope_dim} of {rule.head_dim}"


def bad_values(value: Any) -> tuple[Any, ...]:
    """Values of the wrong type or range for a field of config.json that holds `value`."""
    if isinstance(value, bool):
        return ("yes", 7, [1])
    if isinstance(value, int):
        return ("many", -1, 2.5, [3], {"a": 1})
    if isinstance(value, float):
        return ("much", [1.0], {"a": 1})
    if isinstance(value, str):
        return (3, "no such thing", [1])
    if isinstance(value, list | dict):
        return ("nothing of the kind", 7)
    return ()
