"""Attention by FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608) over pages of one cache group."""

from __future__ import annotations

from dataclasses import replace

import torch

from core.interfaces.attention import AttentionBackend, AttentionCapabilities, AttentionConfig, MlaWeights, TokenRows
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError
from core.interfaces.spec import AttentionSpec, StateKind
from plugin_fa3.device import NEEDED, unsuitable
from plugin_fa3.latent import LatentCalls, rejects_latent
from plugin_fa3.merge import merge_into
from plugin_fa3.plan import Piece, Step, plan_step
from plugin_fa3.prefix import CommonKeys, CommonPrefixes, Sharing
from plugin_fa3.providers.base import Provider, Rows, Rule
from plugin_fa3.providers.binding import Partial
from plugin_fa3.providers.choose import choose, how_to_install, installed
from plugin_fa3.schedule import Schedules
from plugin_fa3.splits import Splits
from plugin_fa3.store import read_kv, store_for


class Fa3Attention(AttentionBackend):
    """KV of a layer: K [num_pages, page_size, num_kv_heads, head_dim] and V [..., v_head_dim]; of latents
    [num_pages, page_size, 1, latent_dim] and [..., rope_dim].

    Pages that hold whole tiles of keys, 64 tokens and more, would be read by the tensor memory accelerator: what lies
    behind a sequence's last token would be multiplied by zero instead of being left out, and not-a-number that another
    request left there would show. So they are not claimed.
    """

    capabilities = AttentionCapabilities(
        state_kinds=frozenset({StateKind.FULL, StateKind.SLIDING_WINDOW, StateKind.MLA_LATENT}),
        page_sizes=(16, 32),
        head_dims=(64, 80, 96, 112, 128, 160, 192, 256),
        dtypes=("bfloat16", "float16"),
        hardware=("nvidia",),
        softcap=True,
        sinks=True,
        graph=True,
    )

    def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
        super().__init__(config, ctx)
        problem = self.rejects(config)
        if problem is not None:
            raise ConfigError(f"attention backend fa3 cannot be used: {problem}", field="engine.attention_backend")
        self._provider = self._choose_provider()
        self._group = config.num_heads // config.num_kv_heads
        self._store = store_for(config.device)
        self._rules = {layer: _rule(spec) for layer, spec in config.layers.items()}
        kinds = list(dict.fromkeys(config.layers.values()))
        self._kinds = {layer: kinds.index(spec) for layer, spec in config.layers.items()}  # alike: the same calls
        self._splits = Splits(ctx.settings.num_splits, config)
        self._schedules = Schedules(self._provider, config)
        self._common_schedules = Schedules(self._provider, config)
        plain = config.group.kind is StateKind.FULL and all(
            spec.window is None and not spec.has_sinks for spec in config.layers.values()
        )
        self._prefixes = CommonPrefixes(config) if ctx.settings.shared_prefixes and plain else None
        self._latent = LatentCalls(self._provider, config, self._splits)
        self._sharing: Sharing | None = None  # of the captured layout that is planned next
        self._common: CommonKeys | None = None
        self._decode_rows: Rows | None = None
        self._step: Step | None = None
        # Of this step: (kind of layer, whether its keys are at hand) -> calls and whether each reads pages.
        self._calls: dict[tuple[int, bool], list[tuple[Partial, bool]]] = {}
        self._decode_calls: dict[int, Partial] = {}
        ctx.logger.info("FlashAttention-3 of %s", self._provider.install)

    @classmethod
    def unavailable(cls) -> str | None:
        return unsuitable() or (None if installed() else how_to_install())

    @classmethod
    def rejects(cls, config: AttentionConfig) -> str | None:
        if config.num_heads % config.num_kv_heads:
            return f"{config.num_heads} query heads are not a multiple of {config.num_kv_heads} KV heads"
        for spec in config.layers.values():
            if spec.latent_dim:
                problem = rejects_latent(spec)
                if problem is not None:
                    return problem
            elif spec.v_head_dim != spec.head_dim:
                return f"values of {spec.v_head_dim} elements beside keys of {spec.head_dim}"
            if spec.has_sinks and config.dtype != torch.bfloat16:
                return f"attention sinks are read in bfloat16, the model computes in {config.dtype}"
        found = installed()
        if found and not any(p.sinks_argument for p in found) and any(s.has_sinks for s in config.layers.values()):
            return f"{' and '.join(p.install for p in found)} has no attention sinks: pip install sglang-kernel"
        if config.device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(config.device)
            if (major, minor) != NEEDED:
                return f"{config.device} has compute capability {major}.{minor}, it needs {NEEDED[0]}.{NEEDED[1]}"
        return None

    def _choose_provider(self) -> Provider:
        sinks = any(spec.has_sinks for spec in self.config.layers.values())
        return choose(self.ctx.settings.provider, sinks=sinks)

    def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
        config = self.config

        def pages(dim: int) -> torch.Tensor:
            shape = (config.num_pages, config.page_size, config.num_kv_heads, dim)
            return torch.zeros(shape, dtype=config.dtype, device=config.device)

        if config.group.kind is StateKind.MLA_LATENT:
            return {layer: (pages(spec.latent_dim), pages(spec.rope_dim)) for layer, spec in config.layers.items()}
        return {layer: (pages(spec.head_dim), pages(spec.v_head_dim)) for layer, spec in config.layers.items()}

    def variant(self, layout: BatchLayout) -> int:
        """1 with keys in common, 0 without: that is a call and a merge less in every layer."""
        self._sharing = None if self._prefixes is None else self._prefixes.search(layout)
        return int(self._sharing is not None)

    def plan(self, layout: BatchLayout) -> None:
        self._step = step = plan_step(layout, self._group, self.config.device)
        self._calls, self._decode_calls = {}, {}
        sharing, self._sharing, self._common = self._sharing, None, None
        if step.decodes is None:
            return
        rows = step.decodes.paged
        if self._prefixes is not None and (layout.variant or not layout.captured):
            sharing = sharing if layout.captured else self._prefixes.search(layout)
            if sharing is not None:
                self._common = self._prefixes.prepare(sharing, rows, captured=layout.captured)
        if self._common is not None:
            splits = self._splits.of_common(layout.num_decodes)
            self._common_schedules.make(self._common.rows, splits, captured=step.captured)
            rows = replace(rows, skipped=self._common.skipped)
        self._decode_rows = rows
        self._schedules.make(rows, self._splits.of_decodes(step.decodes), captured=step.captured)

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        step = self._step
        assert step is not None, "plan() comes before run()"
        k_pages, v_pages = kv
        given = k is not None and v is not None
        if k is not None and v is not None:
            self._store(k, v, k_pages, v_pages, step.slots)
        num_rows, num_heads, _ = q.shape
        out = torch.empty(
            (num_rows, num_heads, self.config.layers[layer].v_head_dim), dtype=q.dtype, device=q.device
        )  # fmt: skip
        rows_out = out
        if step.num_tokens < num_rows:
            # What the kernels see ends with the last sequence: they may read a tile past a sequence, never past a
            # tensor.
            tokens = slice(0, step.num_tokens)
            out[step.num_tokens :].zero_()
            q, rows_out = q[tokens], out[tokens]
            if k is not None and v is not None:
                k, v = k[tokens], v[tokens]
        if not given and any(piece.long for piece in step.prefills):
            k, v = read_kv(k_pages, v_pages, step.slots[: step.num_tokens])
        if step.decodes is not None:
            self._decode(q, k_pages, v_pages, rows_out, step.decodes, layer, sinks)
        if step.prefills:
            for call, paged in self._prefill_calls(step, layer, k is not None, sinks):
                if paged:
                    call(q, k_pages, v_pages, rows_out)
                else:
                    call(q, k, v, rows_out)
        return out

    def _prefill_calls(
        self, step: Step, layer: int, at_hand: bool, sinks: torch.Tensor | None
    ) -> list[tuple[Partial, bool]]:
        """(a call, whether it reads pages) for each piece of the step. at_hand: there are keys outside of pages."""
        key = self._kinds[layer], at_hand
        calls = None if sinks is not None else self._calls.get(key)  # a layer has sinks of its own
        if calls is None:
            rule, calls = self._rules[layer], []
            for piece in step.prefills:
                if piece.fresh is not None and at_hand:
                    calls.append((self._provider.call(piece.fresh, rule, sinks=sinks), False))
                else:
                    splits = self._splits.of_prefills(piece)
                    calls.append((self._provider.call(piece.paged, rule, sinks=sinks, num_splits=splits), True))
            if sinks is None:
                self._calls[key] = calls
        return calls

    def token_rows(self, kv: tuple[torch.Tensor, ...]) -> TokenRows | None:
        """Prompts that start in this step attend to their keys before they lie in pages, which is faster."""
        step = self._step
        assert step is not None, "plan() comes before token_rows()"
        if any(piece.fresh is not None for piece in step.prefills):
            return None
        k_pages, v_pages = kv
        return k_pages.flatten(0, 1), v_pages.flatten(0, 1), step.slots

    def run_mla(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        weights: MlaWeights,
        layer: int,
        kv: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        step = self._step
        assert step is not None, "plan() comes before run_mla()"
        latents, ropes = kv
        self._store(latent[:, None], k_rope[:, None], latents, ropes, step.slots)
        schedule = self._schedules.of(layer)
        return self._latent.run(q_nope, q_rope, latent, k_rope, weights, layer, kv, step, schedule)

    def _decode(
        self,
        q: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        out: torch.Tensor,
        decodes: Piece,
        layer: int,
        sinks: torch.Tensor | None,
    ) -> None:
        common, rows, rule = self._common, self._decode_rows, self._rules[layer]
        assert rows is not None
        splits, schedule = self._splits.of_decodes(decodes), self._schedules.of(layer)
        q, out = q[: decodes.num_rows], out[: decodes.num_rows]
        if common is None:
            call = None if sinks is not None else self._decode_calls.get(self._kinds[layer])
            if call is None:
                call = self._provider.call(rows, rule, sinks=sinks, num_splits=splits, metadata=schedule)
                if sinks is None:
                    self._decode_calls[self._kinds[layer]] = call
            call(q, k_pages, v_pages, out)
            return
        shared = torch.empty_like(out)
        shared_lse = self._provider.attend(
            q, k_pages, v_pages, shared, common.rows, rule,
            num_splits=self._splits.of_common(len(q)), metadata=self._common_schedules.of(layer),
        )  # fmt: skip
        lse = self._provider.attend(q, k_pages, v_pages, out, rows, rule, num_splits=splits, metadata=schedule)
        merge_into(out, lse, shared, shared_lse, common.skipped)


def _rule(spec: AttentionSpec) -> Rule:
    return Rule(spec.scale, spec.window, spec.softcap)
