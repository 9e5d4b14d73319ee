"""Attention by FlashInfer (Ye et al. 2025, arXiv:2501.01005) over pages of one cache group.

Decodes and the rows after them are one call each. A call is planned on the host once a step for all layers with the
same window, soft cap and head size.
"""

from __future__ import annotations

from typing import Any

import torch

from core.interfaces.attention import AttentionBackend, AttentionCapabilities, AttentionConfig
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError
from core.interfaces.spec import AttentionSpec, StateKind
from plugin_flashinfer.calls import PagedCall, Rule, Workspaces
from plugin_flashinfer.library import missing, wrapper
from plugin_flashinfer.pages import PagedRows, paged_rows

OLDEST = (8, 0)


class FlashInferAttention(AttentionBackend):
    """KV of a layer: K and V [num_pages, page_size, num_kv_heads, head_dim]."""

    capabilities = AttentionCapabilities(
        state_kinds=frozenset({StateKind.FULL, StateKind.SLIDING_WINDOW}),
        head_dims=(64, 128, 256),
        dtypes=("bfloat16", "float16"),
        hardware=("nvidia",),
        softcap=True,
        graph=True,
    )

    def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
        super().__init__(config, ctx)
        problem = self.rejects(config)
        if problem is not None:
            raise ConfigError(f"attention backend flashinfer: {problem}", field="engine.attention_backend")
        self._wrapper = self._load()
        self._workspaces = Workspaces(config.device, ctx.settings.workspace_mib)
        self._rules = {layer: _rule(spec) for layer, spec in config.layers.items()}
        # By what is called: "decodes", "prefills", or the number of rows of a recorded step.
        self._calls: dict[tuple[str | int, Rule], PagedCall] = {}
        self._parts: tuple[tuple[str | int, PagedRows], ...] = ()
        self._slots: torch.Tensor | None = None
        self._num_tokens = 0

    @classmethod
    def unavailable(cls) -> str | None:
        return missing()

    @classmethod
    def rejects(cls, config: AttentionConfig) -> str | None:
        if config.num_heads % config.num_kv_heads:
            return f"{config.num_heads} query heads are not a multiple of {config.num_kv_heads} KV heads"
        for spec in config.layers.values():
            if spec.v_head_dim != spec.head_dim:
                return f"values of {spec.v_head_dim} elements beside keys of {spec.head_dim}"
        if config.device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(config.device)
            if (major, minor) < OLDEST:
                return f"{config.device} has compute capability {major}.{minor}, it needs {OLDEST[0]}.{OLDEST[1]}"
        return None

    def _load(self) -> Any:
        return wrapper()

    def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
        config = self.config

        def pages(dim: int) -> torch.Tensor:
            shape = (config.num_pages, config.page_size, config.num_kv_heads, dim)
            return torch.zeros(shape, dtype=config.dtype, device=config.device)

        return {layer: (pages(spec.head_dim), pages(spec.v_head_dim)) for layer, spec in config.layers.items()}

    def plan(self, layout: BatchLayout) -> None:
        first, last = layout.num_decodes, layout.num_seqs
        parts: list[tuple[str | int, PagedRows]] = []
        if first:
            parts.append((first if layout.captured else "decodes", paged_rows(layout, 0, first)))
        if first < last:
            parts.append(("prefills", paged_rows(layout, first, last)))
        for what, rows in parts:
            for rule in dict.fromkeys(self._rules.values()):
                self._call(what, rule).plan(rows)
        self._parts, self._slots, self._num_tokens = tuple(parts), layout.slot_mapping, layout.num_tokens

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert self._slots is not None, "plan() comes before run()"
        if k is not None and v is not None:
            for new, pages in ((k, kv[0]), (v, kv[1])):
                pages.view(-1, *pages.shape[2:]).index_copy_(0, self._slots, new)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if self._num_tokens < len(out):
            out[self._num_tokens :].zero_()
        for what, rows in self._parts:
            tokens = slice(rows.first_row, rows.last_row)
            call = self._call(what, self._rules[layer])
            call.run(q[tokens], kv, out[tokens], self.config.layers[layer].scale)
        return out

    def _call(self, what: str | int, rule: Rule) -> PagedCall:
        call = self._calls.get((what, rule))
        if call is None:
            rows = what if isinstance(what, int) else None
            # Steps may be recorded in inference mode and planned outside of it; tensors made in it are read-only there.
            with torch.inference_mode(False):
                plan = self._workspaces.plan("recorded" if rows else str(what), rule)
                call = PagedCall(
                    self._wrapper, self.config, rule, self._workspaces.partial, plan, self.ctx.settings.kernels, rows
                )
            self._calls[what, rule] = call
        return call


def _rule(spec: AttentionSpec) -> Rule:
    return Rule(spec.window, spec.softcap, spec.head_dim)
