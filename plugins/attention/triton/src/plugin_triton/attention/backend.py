"""TritonAttention: attention over the paged KV cache in Triton, on GPUs of several makers."""

from __future__ import annotations

import torch

from core.interfaces.attention import AttentionBackend, AttentionCapabilities, AttentionConfig, MlaWeights, TokenRows
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, StateKind
from plugin_triton.attention.latent import LatentLayer
from plugin_triton.attention.launcher import Cached, Launcher, Workspace
from plugin_triton.attention.sharing import SharedRows, shared_prefixes
from plugin_triton.attention.step import Step, few_rows
from plugin_triton.attention.tiles import Device, HeadShape
from plugin_triton.dependent import dependent

_MAX_DIM = 512  # of a key or value in one tile


class TritonAttention(AttentionBackend):
    """KV of a layer: K [num_pages * page_size, num_kv_heads, head_dim] and V [..., v_head_dim], one row a slot; of
    latent attention one buffer [num_pages * page_size, 1, latent_dim + rope_dim].

    Rows with few new tokens go to one kernel, the others to a second; keys and values are written by the first on its
    way, or by a third. Nothing is read back, and what a recorded step reads lies in the layout's tensors and, of common
    prefixes, in a buffer for each number of rows.
    """

    capabilities = AttentionCapabilities(
        state_kinds=frozenset({StateKind.FULL, StateKind.SLIDING_WINDOW, StateKind.MLA_LATENT}),
        dtypes=("float32", "bfloat16", "float16"),
        kv_dtypes=("auto", "bfloat16", "fp8_e4m3", "fp8_e5m2"),
        hardware=("nvidia", "amd"),
        softcap=True,
        sinks=True,
        graph=True,
        slot_dtype="int32",
    )

    def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
        super().__init__(config, ctx)
        self._device = Device.of(config.device)
        self._pdl = dependent(config.device)
        self._latent = config.group.kind is StateKind.MLA_LATENT
        made: dict[tuple[AttentionSpec, tuple[float, float]], Launcher] = {}  # most layers are alike
        self._launchers: dict[int, Launcher] = {}
        for layer, spec in config.layers.items():
            key = spec, config.scales(layer)
            if key not in made:
                made[key] = self._launcher(*key)
            self._launchers[layer] = made[key]
        self._latents = {
            layer: LatentLayer(spec, config, launcher, self._device, self._pdl)
            for layer, spec in config.layers.items()
            if self._latent and (launcher := self._launchers[layer])
        }
        self._work = self._workspace()
        self._shared: dict[int, SharedRows] = {}
        self._step: Step | None = None
        self._cached: dict[int, Cached] = {}

    def _launcher(self, spec: AttentionSpec, scales: tuple[float, float]) -> Launcher:
        config = self.config
        return Launcher(
            HeadShape.of(spec, config.num_heads, config.num_kv_heads),
            spec,
            dtype=config.dtype,
            kv_dtype=config.cache_dtype,
            scales=scales,
            page_size=config.page_size,
            device=self._device,
            pdl=self._pdl,
            shares=not self.capabilities.batch_invariant,
            invariant=self.capabilities.batch_invariant,
        )

    def _workspace(self) -> Workspace:
        device, max_rows = self.config.device, self.config.max_seqs
        # Layers that differ in nothing but their scales need the same.
        launchers = {launcher.spec: launcher for launcher in self._launchers.values()}.values()
        logs = max((x.part_elements(max_rows) for x in launchers), default=1)
        parts = max((x.part_elements(max_rows) * x.shape.v_dim for x in launchers), default=1)
        arrivals = max_rows * self.config.num_heads
        return Workspace(
            torch.empty(parts, dtype=torch.float32, device=device),
            torch.empty(logs, dtype=torch.float32, device=device),
            torch.zeros(arrivals, dtype=torch.int32, device=device),
        )

    @classmethod
    def rejects(cls, config: AttentionConfig) -> str | None:
        if config.num_heads % config.num_kv_heads:
            return f"{config.num_heads} query heads are not a multiple of {config.num_kv_heads} KV heads"
        for layer, spec in config.layers.items():
            if spec.latent_dim and (spec.window is not None or spec.softcap is not None or spec.has_sinks):
                return f"latent attention of layer {layer} has a window, a soft cap or sinks"
            widest = max(spec.latent_dim, spec.rope_dim) if spec.latent_dim else max(spec.head_dim, spec.v_head_dim)
            if widest > _MAX_DIM:
                return f"a head of layer {layer} is {widest} wide, at most {_MAX_DIM} are possible"
        return None

    def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
        config = self.config
        slots, dtype = config.num_pages * config.page_size, config.cache_dtype

        def buffer(width: int) -> torch.Tensor:
            return torch.zeros(slots, config.num_kv_heads, width, dtype=dtype, device=config.device)

        if self._latent:
            return {layer: (buffer(spec.latent_dim + spec.rope_dim),) for layer, spec in config.layers.items()}
        return {layer: (buffer(spec.head_dim), buffer(spec.v_head_dim)) for layer, spec in config.layers.items()}

    def plan(self, layout: BatchLayout) -> None:
        launchers = self._launchers.values()
        most_queries = 1 if self._latent else min((x.most_queries for x in launchers), default=1)
        self._step = Step.of(layout, most_queries, self._find_shared(layout, most_queries))

    def _find_shared(self, layout: BatchLayout, most_queries: int) -> SharedRows | None:
        few = few_rows(layout, most_queries)
        launcher = next((x for x in self._launchers.values() if x.shares), None)
        if launcher is None or not few or not launcher.splits(few).shared or layout.q_lens[:few].max() > 1:
            return None
        shared = self._shared.get(few)
        if shared is None:
            shared = self._shared[few] = SharedRows(few, launcher.prefix_rows, self.config.device)
        shared.set(shared_prefixes(layout.page_table[:few], layout.seq_lens[:few], layout.page_size))
        return shared

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        step, launcher = self._step, self._launchers[layer]
        assert step is not None, "plan() comes before run()"
        cached = self._cached.get(layer)
        if cached is None or cached.keys is not kv[0] or cached.values is not kv[1]:
            cached = self._cached[layer] = Cached(*kv)
        num_rows, num_heads, _ = q.shape
        out = q.new_empty(num_rows, num_heads, self.config.layers[layer].v_head_dim)
        new = None
        if k is not None and v is not None:
            fused = step.queries == 1
            launcher.store(k, v, step.slots, cached, step.few_tokens if fused else 0, step.num_tokens)
            new = (k, v) if fused else None
        if step.few:
            launcher.decode(q, out, cached, step, self._work, new=new, sinks=sinks)
        if step.few < step.num_seqs:
            launcher.prefill(q, out, cached, step, sinks=sinks)
        if step.num_tokens < num_rows:
            out[step.num_tokens :] = 0  # padding rows: defined, and never read
        return out

    def token_rows(self, kv: tuple[torch.Tensor, ...]) -> TokenRows | None:
        """Only where `decode`, which stores on its way, has nothing to do."""
        step = self._step
        assert step is not None, "plan() comes before token_rows()"
        if step.few or self.config.cache_dtype != self.config.dtype:
            return None
        return kv[0], kv[1], step.slots

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
        (buffer,) = kv
        return self._latents[layer].run(
            q_nope, q_rope, latent, k_rope, weights, Cached(buffer, buffer), step, self._work
        )
