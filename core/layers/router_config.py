"""How a mixture-of-experts layer chooses its experts, as data. Imports no torch, so that a model plugin's `spec` need
not."""

from __future__ import annotations

from dataclasses import dataclass

from core.interfaces.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """One router.

    scoring: "softmax" or "sigmoid" of the logits. renormalize: whether the weights of the chosen are scaled to sum to
    one. scale: factor on the weights after that. correction_bias: a loaded float32 bias an expert, which counts for the
    choice alone. num_groups, topk_groups: experts are chosen among the topk_groups best of num_groups groups of
    neighbours; group_score: "top2" (sum of a group's two best) or "max".
    float32: the router's weight is kept and applied in float32 and is never quantized; otherwise it is a linear layer
    like any other.
    """

    num_experts: int
    top_k: int
    scoring: str = "softmax"
    renormalize: bool = False
    scale: float = 1.0
    correction_bias: bool = False
    num_groups: int = 1
    topk_groups: int = 1
    group_score: str = "top2"
    float32: bool = False

    @property
    def plain(self) -> bool:
        """Whether the softmax over all experts is all there is."""
        return self.scoring == "softmax" and self.scale == 1.0 and not self.correction_bias and self.num_groups == 1

    def check(self, *, experts: str, top_k: str, groups: str = "n_group", topk_groups: str = "topk_group") -> None:
        """Raise CheckpointError if the numbers do not fit each other. The arguments are their names in config.json."""
        if self.num_experts % self.num_groups:
            raise CheckpointError(
                f"config.json: {groups} = {self.num_groups} does not divide {experts} = {self.num_experts}"
            )
        if self.topk_groups > self.num_groups:
            raise CheckpointError(
                f"config.json: {topk_groups} = {self.topk_groups} exceeds {groups} = {self.num_groups}"
            )
        size = self.num_experts // self.num_groups
        if self.num_groups > 1 and self.group_score == "top2" and size < 2:
            raise CheckpointError(
                f"config.json: {groups} = {self.num_groups} leaves groups of {size} of {experts} = "
                f"{self.num_experts}; two experts a group are needed"
            )
        if self.top_k > size * self.topk_groups:
            limit = f"{experts} = {self.num_experts}"
            if self.num_groups > 1:
                limit = f"the {size * self.topk_groups} experts of {topk_groups} = {self.topk_groups} groups"
            raise CheckpointError(f"config.json: {top_k} = {self.top_k} exceeds {limit}")
