"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) of one layer.

Absorbed: the up-projections of keys and values are folded into query and output, and all heads attend to the cached
latents, as to one KV head. So are decodes and chunks with a history. Prompts without one are expanded: keys and values
of every head are made first, which costs a product a token and then half the arithmetic or less of each pair.
"""

from __future__ import annotations

import torch

from core.interfaces.attention import AttentionConfig, MlaWeights
from core.interfaces.spec import AttentionSpec
from plugin_triton.attention.launcher import Cached, Launcher, Workspace
from plugin_triton.attention.step import Step
from plugin_triton.attention.tiles import Device, HeadShape


class LatentLayer:
    """absorbed: launcher over the cached latents."""

    def __init__(
        self, spec: AttentionSpec, config: AttentionConfig, absorbed: Launcher, device: Device, pdl: bool
    ) -> None:
        self._absorbed = absorbed
        self._v_dim = spec.v_head_dim
        self._expanded = Launcher(
            HeadShape.cut(config.num_heads, config.num_heads, spec.head_dim, spec.v_head_dim),
            spec,
            dtype=config.dtype,
            kv_dtype=config.dtype,
            scales=(1.0, 1.0),
            page_size=0,
            device=device,
            pdl=pdl,
        )
        self._exact = config.cache_dtype == config.dtype

    def run(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        weights: MlaWeights,
        cached: Cached,
        step: Step,
        work: Workspace,
    ) -> torch.Tensor:
        """As `AttentionBackend.run_mla`."""
        rows, few, end = q_nope.shape[0], step.few_tokens, step.num_tokens
        new = (latent.unsqueeze(1), k_rope.unsqueeze(1))
        self._absorbed.store(*new, step.slots, cached, few, end)
        out = q_nope.new_empty(rows, q_nope.shape[1], self._v_dim)
        expands = step.any_fresh and self._exact  # what is attended to is what was stored
        fresh_only = expands and not step.longest_history
        # Token rows 0 .. last-1 are wanted absorbed: with an expanded step's rows among them where both ways are used.
        last = few if fresh_only else end
        if last:
            q = torch.bmm(q_nope[:last].transpose(0, 1), weights.key).transpose(0, 1)
            sums = q.new_empty(q.shape[1], last, q.shape[2]).transpose(0, 1)
            if few:
                self._absorbed.decode(q, sums, cached, step, work, q_tail=q_rope, new=new)
            if last > few:
                history = "some" if expands else "any"
                self._absorbed.prefill(q, sums, cached, step, q_tail=q_rope, history=history)
            torch.bmm(sums.transpose(0, 1), weights.value.transpose(1, 2), out=out[:last].transpose(0, 1))
        if expands:
            self._expand(q_nope, q_rope, latent, k_rope, weights, step, out)
        if end < rows:
            out[end:] = 0  # padding rows: defined, and never read
        return out

    def _expand(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        weights: MlaWeights,
        step: Step,
        out: torch.Tensor,
    ) -> None:
        """Rows after `few` whose sequences have no history, over keys and values of this step made from its latents."""
        mine = slice(step.few_tokens, step.num_tokens)
        latents = latent[mine]
        num, heads, nope, v_dim = len(latents), q_nope.shape[1], q_nope.shape[2], self._v_dim
        key = latents @ weights.key.flatten(0, 1).t()
        keys = torch.cat((key.view(num, heads, nope), k_rope[mine, None].expand(-1, heads, -1)), -1)
        values = (latents @ weights.value.flatten(0, 1).t()).view(num, heads, v_dim)
        q = torch.cat((q_nope[: step.num_tokens], q_rope[: step.num_tokens]), -1)
        self._expanded.prefill(q, out, Cached(keys, values), step, history="none")
