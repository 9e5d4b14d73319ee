"""Bytes and operations of a step, counted from the built model: what the hardware's limits are compared with.

Counted of one rank: its own share of the weights and of the KV cache. A multiply-add is two operations. Norms,
activations, rotations and sampling are left out; they are small, and would be fused away in the best case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from core.interfaces.errors import EngineError
from core.interfaces.spec import ModelSpec
from core.layers.embedding import LmHead, VocabEmbedding
from core.layers.linear import LinearBase
from core.layers.module import WeightModule
from core.layers.moe import Experts, MoeLayer


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """Experts of one layer. bytes_each: of one expert's weights. ops: for one token through one expert."""

    num_experts: int
    top_k: int
    bytes_each: float
    ops: int

    def touched(self, num_tokens: int) -> float:
        """Experts that at least one of `num_tokens` tokens chooses, in expectation if all are equally likely."""
        missed = (1.0 - self.top_k / self.num_experts) ** num_tokens
        return self.num_experts * (1.0 - missed)


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """One cache group. bytes_per_token: of the KV cache, all layers of the group. ops_per_key: for one query token and
    one key, all layers. window: keys that a query sees at most."""

    bytes_per_token: float
    ops_per_key: int
    window: int | None


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """Of one rank. dense_bytes, dense_ops: of what every token goes through, but for the language-model head and the
    embedding table, of which a token reads one row. ops are for one token. weight_bits: of most weights."""

    dense_bytes: int
    dense_ops: int
    head_bytes: int
    head_ops: int
    embedding_row_bytes: int
    experts: tuple[ExpertCounts, ...]
    caches: tuple[CacheCounts, ...]
    weight_bits: int

    def weight_bytes(self, num_tokens: int, num_sampled: int) -> float:
        """Weights that a step of `num_tokens` tokens has to read once."""
        experts = sum(layer.touched(num_tokens) * layer.bytes_each for layer in self.experts)
        head = self.head_bytes if num_sampled else 0
        return self.dense_bytes + head + experts + num_tokens * self.embedding_row_bytes

    def weight_ops(self, num_tokens: int, num_sampled: int) -> float:
        """Operations of the products with weights."""
        experts = sum(layer.top_k * layer.ops for layer in self.experts)
        return num_tokens * (self.dense_ops + experts) + num_sampled * self.head_ops

    def cache_bytes(self, context: int) -> float:
        """KV cache that one query at the end of `context` tokens reads."""
        return sum(cache.bytes_per_token * min(context, cache.window or context) for cache in self.caches)

    def attention_ops(self, context: int, num_queries: int = 1) -> float:
        """Of the last `num_queries` tokens of a text of `context`, each of which sees what is before it."""
        total = 0.0
        for cache in self.caches:
            keys = sum_of_keys(context, num_queries, cache.window)
            total += keys * cache.ops_per_key
        return total


def sum_of_keys(context: int, num_queries: int, window: int | None) -> int:
    """Keys that the last `num_queries` of `context` tokens see, summed: query at position p sees min(p + 1, window)."""
    first = context - num_queries + 1
    if window is None or context <= window:
        return (first + context) * num_queries // 2
    if first >= window:
        return window * num_queries
    return (first + window) * (window - first + 1) // 2 + window * (context - window)


def count_model(model: nn.Module, spec: ModelSpec, *, tp_size: int, kv_itemsize: float) -> ModelCounts:
    """Count a loaded model. kv_itemsize: bytes of an element of the KV cache as it is stored.

    Raises EngineError for a layer of experts whose number of choices cannot be told.
    """
    dense_bytes = dense_ops = head_bytes = head_ops = row_bytes = 0
    experts: list[ExpertCounts] = []
    bits: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, MoeLayer):
            experts.append(_experts(module))
            size = next(iter(_tensors(module.experts))).element_size()
            bits[size] = bits.get(size, 0) + int(experts[-1].bytes_each * experts[-1].num_experts)
        elif isinstance(module, Experts):
            continue
        elif isinstance(module, VocabEmbedding):
            row_bytes += module.hidden_size * module.weight.element_size()
        elif isinstance(module, LinearBase):
            num_bytes, ops = _linear(module)
            if isinstance(module, LmHead):
                head_bytes, head_ops = head_bytes + num_bytes, head_ops + ops
                continue
            dense_bytes, dense_ops = dense_bytes + num_bytes, dense_ops + ops
            size = max(1, round(num_bytes * 2 / ops)) if ops else 1
            bits[size] = bits.get(size, 0) + num_bytes
        elif isinstance(module, WeightModule):
            dense_bytes += held_bytes(module)
    return ModelCounts(
        dense_bytes=dense_bytes,
        dense_ops=dense_ops,
        head_bytes=head_bytes,
        head_ops=head_ops,
        embedding_row_bytes=row_bytes,
        experts=tuple(experts),
        caches=tuple(_caches(spec, tp_size, kv_itemsize)),
        weight_bits=8 * max(bits, key=lambda size: bits[size]) if bits else 16,
    )


def _linear(module: LinearBase) -> tuple[int, int]:
    shape = module.shape
    weights = shape.out_features * shape.in_features
    # A kernel library may keep its own form of the weight where no tensor shows; it is not smaller than the numbers.
    num_bytes = held_bytes(module) or weights * 2
    return num_bytes, 2 * weights


def _experts(layer: MoeLayer) -> ExpertCounts:
    shape = layer.experts.shape
    ops = 2 * 3 * shape.hidden_size * shape.intermediate_size
    return ExpertCounts(shape.num_experts, chosen_experts(layer), held_bytes(layer.experts) / shape.num_experts, ops)


def chosen_experts(layer: MoeLayer) -> int:
    """Experts that a token goes through. Raises EngineError if the layer does not tell."""
    top_k = getattr(layer.route, "keywords", {}).get("k")
    if top_k is None:
        raise EngineError(f"{layer.experts.shape.path}: cannot tell how many experts a token goes through")
    return int(top_k)


def _caches(spec: ModelSpec, tp_size: int, itemsize: float) -> Iterator[CacheCounts]:
    for group in spec.cache_groups:
        ops = 0
        for index in group.layers:
            rule = spec.layers[index].attention
            if rule is not None:
                ops += 2 * max(1, rule.num_heads // tp_size) * (rule.head_dim + rule.v_head_dim)
        yield CacheCounts(group.elements_per_token(tp_size) * itemsize, ops, group.window)


def held_bytes(module: nn.Module) -> int:
    """Bytes of the tensors that a module itself holds: parameters, buffers and plain attributes, each memory once."""
    seen: dict[tuple[Any, int], int] = {}
    for tensor in _tensors(module):
        num_bytes = tensor.numel() * tensor.element_size()
        try:
            place: Any = tensor.data_ptr()
        except RuntimeError:  # a kernel library's own layout
            place = id(tensor)
        seen[place, num_bytes] = num_bytes
    return sum(seen.values())


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    for value in (*module._parameters.values(), *module._buffers.values(), *module.__dict__.values()):
        yield from _within(value)


def _within(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _within(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from _within(getattr(value, entry.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _within(item)
