"""Latent attention (MLA): what the cache keeps of a token is one latent, and a key part that carries its position.

Rows with history attend to latents as they lie in the pages, with the key weights absorbed into the query and the value
weights applied to the result. Prompts from their first token on expand this step's latents to keys and values: a few
products more, and half of the attention's arithmetic.
"""

from __future__ import annotations

import torch

from core.interfaces.attention import AttentionConfig, MlaWeights
from core.interfaces.spec import AttentionSpec
from plugin_fa3.plan import Piece, Step
from plugin_fa3.providers.base import Provider, Rule
from plugin_fa3.splits import Splits

# The only sizes that the kernels take a second query for.
LATENT_DIM, ROPE_DIM = 512, 64


def rejects_latent(spec: AttentionSpec) -> str | None:
    """Why latents of this layer cannot be attended to, or None."""
    if (spec.latent_dim, spec.rope_dim) != (LATENT_DIM, ROPE_DIM):
        return (
            f"latents of {spec.latent_dim} elements with {spec.rope_dim} for the position; "
            f"the kernels know {LATENT_DIM} with {ROPE_DIM}"
        )
    if spec.softcap is not None or spec.has_sinks or spec.window is not None:
        return "soft caps, sinks and windows over latents"
    return None


def expands(spec: AttentionSpec) -> bool:
    """Whether the kernels take keys and values of these sizes, once expanded."""
    return spec.head_dim == spec.v_head_dim or (spec.head_dim, spec.v_head_dim) == (192, 128)


class LatentCalls:
    """The calls of a step over one layer's latents."""

    def __init__(self, provider: Provider, config: AttentionConfig, splits: Splits) -> None:
        self._provider = provider
        self._config = config
        self._splits = splits

    def run(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        weights: MlaWeights,
        layer: int,
        kv: tuple[torch.Tensor, ...],
        step: Step,
        schedule: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `AttentionBackend.run_mla`, after latent and k_rope were stored. schedule: of the decodes."""
        spec, tokens = self._config.layers[layer], slice(0, step.num_tokens)
        out = torch.empty(len(q_nope), q_nope.shape[1], spec.v_head_dim, dtype=q_nope.dtype, device=q_nope.device)
        if step.num_tokens < len(out):
            out[step.num_tokens :].zero_()
        rule, q_nope, q_rope, rows_out = Rule(spec.scale), q_nope[tokens], q_rope[tokens], out[tokens]
        fresh: list[Piece] = []
        rest: list[Piece] = []
        for piece in step.prefills:
            (fresh if piece.fresh is not None and expands(spec) else rest).append(piece)
        if step.decodes is not None or rest:
            self._absorbed(q_nope, q_rope, rows_out, weights, kv, rule, step.decodes, rest, schedule)
        if fresh:
            self._expanded(q_nope, q_rope, latent[tokens], k_rope[tokens], rows_out, weights, rule, fresh)
        return out

    def _absorbed(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        out: torch.Tensor,
        weights: MlaWeights,
        kv: tuple[torch.Tensor, ...],
        rule: Rule,
        decodes: Piece | None,
        rest: list[Piece],
        schedule: torch.Tensor | None,
    ) -> None:
        """Rows of `decodes` and `rest` into out [T, H, Dv]; the others are left with anything, for `_expanded`."""
        latents, ropes = kv
        query = torch.bmm(q_nope.transpose(0, 1), weights.key).transpose(0, 1)  # [T, H, R]
        seen = torch.empty_like(query, memory_format=torch.contiguous_format)
        if decodes is not None:
            self._provider.attend(
                q_rope, ropes, latents, seen, decodes.paged, rule,
                q_v=query, num_splits=self._splits.of_decodes(decodes), metadata=schedule,
            )  # fmt: skip
        for piece in rest:
            splits = self._splits.of_prefills(piece)
            self._provider.attend(q_rope, ropes, latents, seen, piece.paged, rule, q_v=query, num_splits=splits)
        torch.bmm(seen.transpose(0, 1), weights.value.transpose(1, 2), out=out.transpose(0, 1))

    def _expanded(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        out: torch.Tensor,
        weights: MlaWeights,
        rule: Rule,
        fresh: list[Piece],
    ) -> None:
        num_heads = q_nope.shape[1]
        k_nope = (latent @ weights.key.flatten(0, 1).t()).unflatten(1, (num_heads, -1))
        k = torch.cat((k_nope, k_rope[:, None].expand(-1, num_heads, -1)), -1)
        v = (latent @ weights.value.flatten(0, 1).t()).unflatten(1, (num_heads, -1))
        q = torch.cat((q_nope, q_rope), -1)
        for piece in fresh:
            assert piece.fresh is not None
            self._provider.attend(q, k, v, out, piece.fresh, rule)
