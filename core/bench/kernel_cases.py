"""Single operations of a model's shapes, by every installed plugin that can do them, and by PyTorch.

Layers are made by the chosen quantization method and op tables, as in an engine, and attention and expert runners by
each plugin of theirs, so that what is measured is what a step would run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from core.bench.counting import CacheCounts, chosen_experts, held_bytes, sum_of_keys
from core.config.sections import Settings
from core.distributed.single import SingleProcess
from core.engine.set_up import context_of, set_up
from core.interfaces.attention import AttentionBackend, AttentionConfig, MlaWeights
from core.interfaces.batch import BatchLayout
from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, StateKind
from core.layers.linear import LinearBase
from core.layers.mla import LatentUpProjection
from core.layers.moe import Experts, MoeLayer
from core.layers.unquantized import Unquantized
from core.ops.table import build_ops
from core.registry import Catalog
from core.registry.candidates import loadable
from core.registry.context import plugin_context
from core.registry.records import PluginRecord
from core.registry.resolve import resolve
from core.registry.select_attention import GroupNeeds
from core.runner.weights import dummy_weights
from core.runner.weights_rules import RuleTable

# Bytes that copies of one layer take together: more than any device caches.
SPREAD_BYTES = 256 << 20
CORE, TORCH = "core", "torch"
Kv = dict[int, tuple[torch.Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Case:
    """One operation at one size. num_bytes, ops: the least that it reads and computes. calls: implementation -> the
    same work on different memory. failed: implementation -> why it cannot be called."""

    kind: str
    name: str
    num_bytes: float
    ops: float
    calls: dict[str, list[Callable[[], object]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class KernelCases:
    """rows: numbers of tokens to look at. Raises what stops an engine's start."""

    def __init__(self, settings: Settings) -> None:
        self.catalog = Catalog.scan()
        self.resolution = resolve(settings, self.catalog)
        resolution = self.resolution
        assert resolution.hardware.record is not None
        made = plugin_context(resolution.hardware.record, resolution.plugin_settings)
        hardware = set_up(resolution.hardware, resolution.hardware.target, made)
        self.device: torch.device = set_up(resolution.hardware, hardware.initialize, 0)
        self.dtype: torch.dtype = getattr(torch, resolution.dtype)

        def context(choice: Any) -> PluginContext:
            return context_of(resolution, choice, self.device)

        tables = [set_up(choice, choice.target, context(choice)).ops() for choice in resolution.ops]
        quant, moe = resolution.quant, resolution.moe
        self._ctx = BuildContext(
            dtype=self.dtype,
            device=self.device,
            ops=build_ops(hardware.ops(), *tables),
            quant=set_up(quant, quant.target, resolution.quant_config, context(quant)),
            moe=set_up(moe, moe.target, context(moe)),
            tp=SingleProcess(),
            max_tokens=resolution.chunk_tokens,
            context_length=resolution.context_length,
            sources=RuleTable(resolution.arch.weights(resolution.spec)).sources,
        )
        # Shapes alone: no memory, no quantization.
        meta = torch.device("meta")
        plain = self._ctx.replace(device=meta, quant=Unquantized(None, PluginContext(device=meta)), layers={})
        self._model: Any = resolution.arch.build(resolution.spec, plain)

    def linears(self, rows: list[int]) -> Iterator[Case]:
        """Every different linear layer of the model."""
        seen = set()
        for module in self._model.modules():
            if not isinstance(module, LinearBase) or isinstance(module, LatentUpProjection):
                continue
            shape = module.shape
            size = (shape.in_features, shape.out_features, shape.bias)
            if size in seen:
                continue
            seen.add(size)
            weights = shape.in_features * shape.out_features
            copies = self._copies(weights * self.dtype.itemsize)
            ours = [LinearBase(shape, self._ctx) for _ in range(copies)]
            dummy_weights(nn.ModuleList(ours), 0)
            plain = [self._random(shape.out_features, shape.in_features) for _ in range(copies)]
            for count in rows:
                x = self._random(count, shape.in_features)
                case = Case(
                    "linear",
                    f"{shape.path.rsplit('.', 1)[-1]} {shape.in_features}->{shape.out_features}, {count} rows",
                    held_bytes(ours[0]) + count * (shape.in_features + shape.out_features) * self.dtype.itemsize,
                    2.0 * weights * count,
                )
                case.calls[CORE] = [_bind(layer, x) for layer in ours]
                case.calls[TORCH] = [_bind(F.linear, x, weight) for weight in plain]
                yield case

    def experts(self, rows: list[int]) -> Iterator[Case]:
        """The model's first layer of experts, by every runner that computes its format."""
        layer = next((module for module in self._model.modules() if isinstance(module, MoeLayer)), None)
        if layer is None:
            return
        shape, top_k = layer.experts.shape, chosen_experts(layer)
        module = Experts(shape.path, shape.num_experts, shape.hidden_size, shape.full_intermediate_size, self._ctx,
                         activation=shape.activation)  # fmt: skip
        dummy_weights(nn.ModuleList([module]), 0)
        each = held_bytes(module) / shape.num_experts
        for count in rows:
            x = self._random(count, shape.hidden_size)
            generator = torch.Generator().manual_seed(count)
            ids = torch.rand(count, shape.num_experts, generator=generator).topk(top_k).indices.to(self.device)
            scales = torch.full((count, top_k), 1.0 / top_k, device=self.device)
            case = Case(
                "experts",
                f"{shape.num_experts} of {shape.intermediate_size}, {top_k} a token, {count} rows",
                each * len(ids.unique()),
                2.0 * 3 * shape.hidden_size * shape.intermediate_size * top_k * count,
            )
            if module.weights is None:
                case.calls[CORE] = [_bind(module, x, ids, scales)]
                yield case
                continue
            for record, target in self._plugins("moe"):
                if module.weights.format in target.formats:
                    made = plugin_context(record, self.resolution.plugin_settings, device=self.device)
                    case.calls[record.name] = [_bind(target(made).run, x, module.weights, ids, scales)]
            yield case

    def attention(self, work: list[tuple[int, int, int]]) -> Iterator[Case]:
        """work: (sequences, new tokens of each, length with them). By every backend that takes the model's groups."""
        for group in self.resolution.spec.cache_groups:
            rule = self.resolution.spec.layers[group.layers[0]].attention
            if rule is not None:
                for num_seqs, q_len, length in work:
                    if length <= self.resolution.context_length:
                        yield self._attention_case(group, rule, num_seqs, q_len, length)

    def _attention_case(
        self, group: CacheGroupSpec, rule: AttentionSpec, num_seqs: int, q_len: int, length: int
    ) -> Case:
        size = self.dtype.itemsize
        one = CacheCounts(group.elements_per_token() / len(group.layers) * size,
                          2 * rule.num_heads * (rule.head_dim + rule.v_head_dim), group.window)  # fmt: skip
        keys = sum_of_keys(length, q_len, rule.window)
        case = Case(
            "attention",
            f"{rule.num_heads}/{rule.num_kv_heads} heads of {rule.head_dim}, {num_seqs} x {q_len} new of {length}",
            num_seqs * min(length, rule.window or length) * one.bytes_per_token,
            float(num_seqs * keys * one.ops_per_key),
        )
        hardware = self.resolution.hardware.name
        copies = self._copies(int(case.num_bytes)) if q_len == 1 else 1
        needs = GroupNeeds(group, (rule,), self.resolution.dtype, hardware, None)
        for record, target in self._plugins("attention"):
            page_size = self._page_size(target)
            if needs.rejects(target.capabilities):
                continue
            config = self._config(group, rule, page_size, num_seqs, q_len, length, copies)
            if target.rejects(config) is not None:
                continue
            try:
                made = plugin_context(record, self.resolution.plugin_settings, device=self.device)
                case.calls[record.name] = self._calls(target(config, made), config, rule, num_seqs, q_len, length)
            except Exception as error:  # one backend's trouble is not the others'
                case.failed[record.name] = f"{type(error).__name__}: {error}"
        if group.kind is not StateKind.MLA_LATENT and rule.window is None:
            case.calls[TORCH] = self._dense(rule, num_seqs, q_len, length, copies)
        return case

    def _plugins(self, kind: str) -> Iterator[tuple[PluginRecord, Any]]:
        """Those that can be loaded for the device."""
        return loadable(self.catalog, self.catalog.of_kind(kind), self.resolution.hardware.name, [])

    def _page_size(self, target: type[AttentionBackend]) -> int:
        sizes = target.capabilities.page_sizes
        wanted = self.resolution.page_size
        return wanted if sizes is None or wanted in sizes else min(sizes, key=lambda size: abs(size - wanted))

    def _config(
        self, group: CacheGroupSpec, rule: AttentionSpec, page_size: int, num_seqs: int, q_len: int, length: int,
        copies: int,
    ) -> AttentionConfig:  # fmt: skip
        layers = tuple(range(copies))
        return AttentionConfig(
            group=replace(group, layers=layers),
            layers=dict.fromkeys(layers, rule),
            num_heads=rule.num_heads,
            num_kv_heads=max(1, group.num_kv_heads),
            page_size=page_size,
            num_pages=1 + num_seqs * -(-length // page_size),
            dtype=self.dtype,
            device=self.device,
            max_seqs=num_seqs,
            max_tokens=num_seqs * q_len,
            context_length=length,
        )

    def _calls(
        self, backend: AttentionBackend, config: AttentionConfig, rule: AttentionSpec, num_seqs: int, q_len: int,
        length: int,
    ) -> list[Callable[[], object]]:  # fmt: skip
        kv = backend.allocate()
        for buffers in kv.values():
            for buffer in buffers:
                buffer.zero_()
        layout = make_layout(config, num_seqs, q_len, length, backend.capabilities.slot_dtype)
        tokens = num_seqs * q_len
        if config.group.kind is StateKind.MLA_LATENT:
            run = self._latent(backend, rule, tokens, kv)
        else:
            run = self._grouped(backend, rule, tokens, kv)
        backend.plan(layout)
        run(0)
        return [_bind(run, layer) for layer in config.layers]

    def _grouped(self, backend: AttentionBackend, rule: AttentionSpec, tokens: int, kv: Kv) -> Callable[[int], object]:
        q = self._random(tokens, rule.num_heads, rule.head_dim)
        k = self._random(tokens, rule.num_kv_heads, rule.head_dim)
        v = self._random(tokens, rule.num_kv_heads, rule.v_head_dim)
        return lambda layer: backend.run(q, k, v, layer, kv[layer])

    def _latent(self, backend: AttentionBackend, rule: AttentionSpec, tokens: int, kv: Kv) -> Callable[[int], object]:
        heads, nope = rule.num_heads, rule.head_dim - rule.rope_dim
        key, value = self._random(heads, nope, rule.latent_dim), self._random(heads, rule.v_head_dim, rule.latent_dim)
        weights = MlaWeights(key, value)
        q_nope, q_rope = self._random(tokens, heads, nope), self._random(tokens, heads, rule.rope_dim)
        latent, k_rope = self._random(tokens, rule.latent_dim), self._random(tokens, rule.rope_dim)
        return lambda layer: backend.run_mla(q_nope, q_rope, latent, k_rope, weights, layer, kv[layer])

    def _dense(self, rule: AttentionSpec, num_seqs: int, q_len: int, length: int, copies: int) -> list[Any]:
        """PyTorch's attention over keys and values that lie next to each other, without pages."""
        q = self._random(num_seqs, rule.num_heads, q_len, rule.head_dim)
        k = [self._random(num_seqs, rule.num_kv_heads, length, rule.head_dim) for _ in range(copies)]
        v = [self._random(num_seqs, rule.num_kv_heads, length, rule.v_head_dim) for _ in range(copies)]

        def run(index: int) -> object:
            return F.scaled_dot_product_attention(q, k[index], v[index], is_causal=q_len > 1, enable_gqa=True)

        return [_bind(run, index) for index in range(copies)]

    def _copies(self, num_bytes: int) -> int:
        return 1 if self.device.type == "cpu" else max(1, min(16, SPREAD_BYTES // max(1, num_bytes)))

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=torch.float32).to(self.dtype)


def make_layout(config: AttentionConfig, num_seqs: int, q_len: int, length: int, slot_dtype: str) -> BatchLayout:
    """`num_seqs` sequences of `length` tokens, the last `q_len` of them new, in pages one after another."""
    pages = -(-length // config.page_size)
    table = 1 + np.arange(num_seqs * pages, dtype=np.int32).reshape(num_seqs, pages)
    positions = np.arange(length - q_len, length)
    slots = table[:, positions // config.page_size].astype(np.int64) * config.page_size + positions % config.page_size
    q_lens, seq_lens = np.full(num_seqs, q_len, np.int32), np.full(num_seqs, length, np.int32)
    cu_q_lens = np.arange(num_seqs + 1, dtype=np.int32) * q_len

    def upload(array: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(config.device)

    return BatchLayout(
        page_size=config.page_size,
        num_decodes=num_seqs if q_len == 1 else 0,
        q_lens=q_lens,
        seq_lens=seq_lens,
        cu_q_lens=cu_q_lens.astype(np.int32),
        page_table=table,
        slot_mapping=upload(slots.reshape(-1).astype(slot_dtype)),
        device_page_table=upload(table),
        device_seq_lens=upload(seq_lens),
        device_cu_q_lens=upload(cu_q_lens.astype(np.int32)),
    )


def _bind(run: Callable[..., object], *args: object) -> Callable[[], object]:
    return lambda: run(*args)
