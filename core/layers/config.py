"""Reading config.json: typed fields with errors that name them, and the grouping of layers into cache groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from core.interfaces.errors import CheckpointError
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, LayerSpec, StateKind

_MISSING = object()

# What a checkpoint may say its weights are, in torch's names.
DTYPES = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2")

# Activation of a gated MLP -> operation and its approximation.
ACTIVATIONS: Mapping[str, tuple[str, str | None]] = MappingProxyType(
    {
        "silu": ("silu_and_mul", None),
        "swish": ("silu_and_mul", None),
        "gelu": ("gelu_and_mul", "none"),
        "gelu_new": ("gelu_and_mul", "tanh"),
        "gelu_pytorch_tanh": ("gelu_and_mul", "tanh"),
    }
)


class ConfigReader:
    """Typed access to a Hugging Face config.json. Every accessor raises CheckpointError naming the field and value.
    A field that is absent or null takes the default; without a default it is required."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def _get(self, name: str, default: Any, kind: type | tuple[type, ...], what: str) -> Any:
        value = self.config.get(name)
        if value is None:
            if default is _MISSING:
                raise CheckpointError(f"config.json: {name} is missing", hint=f"it must be {what}")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CheckpointError(f"config.json: {name} = {value!r}, but it must be {what}")
        return value

    def size(self, name: str, default: Any = _MISSING) -> int:
        """A whole number of at least 1 (or whatever `default` is)."""
        value = self._get(name, default, int, "a whole number of at least 1")
        if value is not default and value < 1:
            raise CheckpointError(f"config.json: {name} = {value}, but it must be a whole number of at least 1")
        return int(value)

    def count(self, name: str, default: Any = _MISSING) -> int:
        """A whole number of at least 0."""
        value = int(self._get(name, default, int, "a whole number of at least 0"))
        if value < 0:
            raise CheckpointError(f"config.json: {name} = {value}, but it must be a whole number of at least 0")
        return value

    def optional_size(self, name: str) -> int | None:
        """A whole number of at least 1, or None where the field is absent or null."""
        return None if self.config.get(name) is None else self.size(name)

    def number(self, name: str, default: Any = _MISSING) -> float:
        return float(self._get(name, default, (int, float), "a number"))

    def flag(self, name: str, default: bool) -> bool:
        return bool(self._get(name, default, bool, "true or false"))

    def text(self, name: str, default: str) -> str:
        return str(self._get(name, default, str, "a string"))

    def activation(self, *, only_silu: bool = False) -> str:
        """`hidden_act` of a gated MLP, "silu" where absent."""
        name = self.text("hidden_act", "silu")
        known = ("silu", "swish") if only_silu else tuple(ACTIVATIONS)
        if name not in known:
            raise CheckpointError(f"config.json: hidden_act = {name!r} is unknown", hint=f"known: {', '.join(known)}")
        return name

    def int_list(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers; empty where absent."""
        value = self._get(name, [], list, "a list of whole numbers")
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            raise CheckpointError(f"config.json: {name} = {value!r}, but it must be a list of whole numbers")
        return tuple(value)

    def dtype(self) -> str:
        """`dtype` (transformers 5) or `torch_dtype` (4), e.g. "bfloat16"."""
        name = "dtype" if self.config.get("dtype") is not None else "torch_dtype"
        value = self.text(name, "float32").removeprefix("torch.")
        if value not in DTYPES:
            raise CheckpointError(
                f"config.json: {name} = {value!r} is no floating-point type", hint=f"known: {', '.join(DTYPES)}"
            )
        return value

    def eos_token_ids(self) -> tuple[int, ...]:
        """`eos_token_id` as a tuple, whether it is a number, a list or absent."""
        value = self.config.get("eos_token_id")
        ids = (value,) if isinstance(value, int) and not isinstance(value, bool) else self.int_list("eos_token_id")
        if any(token < 0 for token in ids):
            raise CheckpointError(f"config.json: eos_token_id = {value!r}, but token ids are at least 0")
        return ids

    def labels(self) -> tuple[str, ...]:
        """Names of a classifier's labels, in order: `id2label`, else `num_labels` of them (2 where absent)."""
        given = self._get("id2label", {}, dict, "an object from label numbers to names")
        if not given:
            return tuple(f"LABEL_{index}" for index in range(self.size("num_labels", 2)))
        numbers = {int(key): value for key, value in given.items() if str(key).isdigit()}
        if sorted(numbers) != list(range(len(given))) or not all(isinstance(v, str) for v in numbers.values()):
            raise CheckpointError(f"config.json: id2label = {given!r}, but it must name the labels 0, 1, 2 and so on")
        return tuple(numbers[index] for index in range(len(numbers)))

    def windows(self, num_layers: int, window: int | None, default: Sequence[bool]) -> list[int | None]:
        """The attention window of each layer: `layer_types` where given, else `window` where `default` is true."""
        types = self.config.get("layer_types")
        if types is None:
            sliding = list(default)
        else:
            known = {"full_attention": False, "sliding_attention": True}
            if not isinstance(types, list) or len(types) != num_layers or any(t not in known for t in types):
                raise CheckpointError(
                    f"config.json: layer_types = {types!r}, but it must name one of {', '.join(known)} for each of "
                    f"{num_layers} layers"
                )
            sliding = [known[t] for t in types]
        if any(sliding) and window is None:
            raise CheckpointError(
                "config.json: layer_types asks for sliding_attention, but sliding_window is null or switched off"
            )
        return [window if slides else None for slides in sliding]


def head_size(reader: ConfigReader, hidden_size: int, num_heads: int, default: int | None = None) -> int:
    """`head_dim`, or `default`, or hidden_size / num_attention_heads. Raises CheckpointError if that is no whole
    number."""
    given = reader.optional_size("head_dim") or default
    if given is not None:
        return given
    if hidden_size % num_heads:
        raise CheckpointError(
            f"config.json: hidden_size = {hidden_size} is not a multiple of num_attention_heads = {num_heads}, "
            "and there is no head_dim"
        )
    return hidden_size // num_heads


def check_heads(num_heads: int, num_kv_heads: int) -> None:
    """Raise CheckpointError unless query heads share KV heads evenly."""
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads = {num_heads} is not a multiple of num_key_value_heads = {num_kv_heads}"
        )


def group_layers(attention: Sequence[AttentionSpec]) -> tuple[tuple[LayerSpec, ...], tuple[CacheGroupSpec, ...]]:
    """Layers that remember alike (kind, window, KV heads, sizes of what is cached) share a cache group, in order of
    appearance."""
    members: dict[tuple[StateKind, int | None, int, int, int], list[int]] = {}
    for index, rule in enumerate(attention):
        members.setdefault(_remembers(rule), []).append(index)
    groups: list[CacheGroupSpec] = []
    layers: dict[int, LayerSpec] = {}
    names: set[str] = set()
    for number, ((kind, window, kv_heads, head_dim, v_head_dim), indices) in enumerate(members.items()):
        name = {StateKind.FULL: "full", StateKind.MLA_LATENT: "latent"}.get(kind, f"window_{window}")
        name = name if name not in names else f"{name}_{number}"
        names.add(name)
        groups.append(CacheGroupSpec(name, kind, tuple(indices), kv_heads, head_dim, v_head_dim, window))
        layers.update({index: LayerSpec(attention[index], number) for index in indices})
    return tuple(layers[i] for i in range(len(attention))), tuple(groups)


def _remembers(rule: AttentionSpec) -> tuple[StateKind, int | None, int, int, int]:
    """Kind, window, and KV heads and their sizes as a CacheGroupSpec states them."""
    if rule.latent_dim:
        return StateKind.MLA_LATENT, rule.window, 1, rule.latent_dim, rule.rope_dim
    kind = StateKind.FULL if rule.window is None else StateKind.SLIDING_WINDOW
    return kind, rule.window, rule.num_kv_heads, rule.head_dim, rule.v_head_dim
