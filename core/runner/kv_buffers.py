"""The KV buffers of a rank: one attention backend for each cache group, and what it lays out for each layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from core.interfaces.attention import AttentionBackend, AttentionConfig
from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError
from core.runner.config import RunnerConfig


def kv_bytes_per_page(config: RunnerConfig) -> int:
    """Bytes of one page in every cache group together, on this rank."""
    itemsize = (config.kv_dtype or config.dtype).itemsize
    return sum(
        backend.page_bytes(group, config.page_size, itemsize, config.tp.size)
        for backend, group in zip(config.attention, config.spec.cache_groups, strict=True)
    )


def make_kv_buffers(
    config: RunnerConfig, device: torch.device, num_pages: int, scales: Mapping[int, tuple[float, float]]
) -> tuple[tuple[AttentionBackend, ...], tuple[tuple[torch.Tensor, ...], ...]]:
    """The backend of each cache group, and the buffers of each layer, of `num_pages` pages each. scales: of cached keys
    and values, by layer. Raises ConfigError if a backend finds that it cannot serve its group after all."""
    tp_size = config.tp.size
    kv: list[tuple[torch.Tensor, ...]] = [()] * len(config.spec.layers)
    backends = []
    contexts = config.attention_contexts or tuple(PluginContext(device=device) for _ in config.attention)
    for group, backend_class, ctx in zip(config.spec.cache_groups, config.attention, contexts, strict=True):
        specs = {layer: spec for layer in group.layers if (spec := config.spec.layers[layer].attention) is not None}
        num_heads = max((spec.num_heads for spec in specs.values()), default=0)
        attention = AttentionConfig(
            group=group,
            layers=specs,
            num_heads=num_heads // tp_size,
            num_kv_heads=max(1, group.num_kv_heads // tp_size),
            page_size=config.page_size,
            num_pages=num_pages,
            dtype=config.dtype,
            device=device,
            max_seqs=config.max_running,
            max_tokens=config.max_step_tokens,
            context_length=config.context_length,
            kv_dtype=config.kv_dtype,
            kv_scales={layer: scales[layer] for layer in specs if layer in scales},
        )
        reason = backend_class.rejects(attention)
        if reason is not None:
            raise ConfigError(
                f"attention backend {backend_class.__name__} cannot serve cache group {group.name!r}: {reason}",
                field="engine.attention_backend",
                value=backend_class.__name__,
                hint="choose another with --attention-backend",
            )
        backend = backend_class(attention, ctx)
        for layer, buffers in backend.allocate().items():
            kv[layer] = buffers
        backends.append(backend)
    return tuple(backends), tuple(kv)
