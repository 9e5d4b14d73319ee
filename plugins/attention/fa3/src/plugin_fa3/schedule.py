"""Schedules of one call of a step, its decodes: which multiprocessor takes which part of which sequence.

Without one the kernels work it out anew in every layer. Layers share one if they have the same window, softcap and
sizes. The kernels also count in it while they run and leave it as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.interfaces.attention import AttentionConfig
from plugin_fa3.plan import cached_dims
from plugin_fa3.providers.base import Provider, Rows, Rule


@dataclass(frozen=True, slots=True)
class _Kind:
    """What layers with one schedule have in common."""

    window: int | None
    has_softcap: bool
    head_dim: int
    v_head_dim: int


class Schedules:
    def __init__(self, provider: Provider, config: AttentionConfig) -> None:
        self._provider = provider
        self._config = config
        self._kind_of = {
            layer: _Kind(spec.window, spec.softcap is not None, *cached_dims(spec))
            for layer, spec in config.layers.items()
        }
        self._kinds = tuple(dict.fromkeys(self._kind_of.values()))
        self._now: dict[_Kind, torch.Tensor] = {}
        # Of recorded steps, by number of rows: the recording reads from these addresses.
        self._kept: dict[tuple[int, int, _Kind], torch.Tensor] = {}

    def make(self, rows: Rows, num_splits: int, *, captured: bool) -> None:
        """The schedules of a call over pages, for all layers."""
        for kind in self._kinds:
            made = self._provider.schedule(
                rows,
                Rule(1.0, kind.window, 1.0 if kind.has_softcap else None),
                num_heads=self._config.num_heads,
                num_kv_heads=self._config.num_kv_heads,
                head_dim=kind.head_dim,
                v_head_dim=kind.v_head_dim,
                page_size=self._config.page_size,
                dtype=self._config.dtype,
                num_splits=num_splits,
            )
            self._now[kind] = self._keep((len(rows.cu_q) - 1, rows.max_q, kind), made) if captured else made

    def of(self, layer: int) -> torch.Tensor | None:
        return self._now.get(self._kind_of[layer])

    def _keep(self, key: tuple[int, int, _Kind], made: torch.Tensor) -> torch.Tensor:
        if key not in self._kept:
            # As in CommonPrefixes: recorded in inference mode, and perhaps planned outside of it.
            with torch.inference_mode(False):
                self._kept[key] = torch.empty(made.shape, dtype=made.dtype, device=made.device)
        return self._kept[key].copy_(made)
