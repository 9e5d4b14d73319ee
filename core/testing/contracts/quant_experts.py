"""The part of the quantization suite about experts, against a loop in float64."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch.nn import functional as F

from core.interfaces.errors import ConfigError, WeightError
from core.layers.moe import Experts
from core.layers.unquantized import STACKED
from core.testing.contracts.quant_setup import LAYER, QuantSetup, Rank, Variant, refusal

_PATH = f"{LAYER}.mlp.experts"
_PARTS = ("gate", "up", "down")
Matrices = Mapping[tuple[str, int], torch.Tensor]
Job = tuple[str, str, torch.Tensor, int | None]


class QuantExpertsTests(QuantSetup):
    """Skipped for methods that have none for experts.

    num_experts, and features as the intermediate size; half of them as the hidden size.
    """

    num_experts = 4

    def matrices(self, dtype: torch.dtype) -> Matrices:
        """(part, expert) -> weight, as a checkpoint without quantization has them."""
        hidden, width, host = self.features // 2, self.features, torch.device("cpu")
        shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
        return {
            (part, e): self.random(
                *shapes[part], dtype=dtype, device=host, seed=100 * number + e, scale=shapes[part][1] ** -0.5
            )
            for number, part in enumerate(_PARTS)
            for e in range(self.num_experts)
        }

    def jobs(self, variant: Variant, matrices: Matrices) -> list[Job]:
        return [
            (suffix, part, tensor, expert)
            for (part, expert), weight in matrices.items()
            for suffix, tensor in self.stored(variant, weight).items()
        ]

    def experts(self, variant: Variant, dtype: torch.dtype, rank: Rank | None = None) -> Experts:
        """core's layer with empty weights; skips where the method has none or refuses to share it so."""
        context = self.build_context(variant, dtype, rank)
        try:
            module = Experts(_PATH, self.num_experts, self.features // 2, self.features, context)
        except ConfigError as error:
            reason = refusal(error)
        else:
            return self.runnable(module)
        self.require(False, f"{variant.label}: experts ({reason})")
        raise AssertionError("not reached")

    def runnable(self, module: Experts) -> Experts:
        method_format = module.method.format
        formats = type(module.runner).formats
        self.require(
            method_format is None or method_format in formats, f"experts of format {method_format} (see moe_runner)"
        )
        return module

    def fill(self, module: Experts, jobs: list[Job]) -> Experts:
        covered = set().union(*(module.covers(s, p, -1 if e is None else e) for s, p, _, e in jobs))
        assert covered == module.expected(), (
            f"experts lack {sorted(module.expected() - covered)}; {sorted(covered - module.expected())} unexpected"
        )
        for suffix, part, tensor, expert in jobs:
            module.load(suffix, part, tensor, expert)
        module.finish()
        return module

    def routed(self, rows: int, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids [T, K], weights [T, K]): no expert twice in a row, and the last expert chosen by nobody."""
        odds = self.random(rows, self.num_experts - 1, dtype=torch.float32, seed=7).softmax(-1)
        weights, ids = odds.topk(top_k, -1)
        return ids, weights

    def assert_experts(
        self, variant: Variant, got: torch.Tensor, matrices: Matrices, x: torch.Tensor, ids: torch.Tensor,
        weights: torch.Tensor,
    ) -> None:  # fmt: skip
        assert got.dtype == x.dtype
        x = x.cpu()
        want = torch.zeros(x.shape, dtype=torch.float64)
        for row in range(x.shape[0]):
            for expert, weight in zip(ids[row].tolist(), weights[row].tolist(), strict=True):
                gate, up, down = (matrices[part, expert].to(x.dtype).double() for part in _PARTS)
                token = x[row].double()
                want[row] += weight * (down @ (F.silu(gate @ token) * (up @ token)))
        # Each of three products brings the error that its weight has.
        extra = 3 * (variant.weight_error + variant.apply_error)
        self.assert_close(got, want, x.dtype, f"{variant.label}: the experts", extra=extra)

    def test_experts_against_a_loop(self, variant: Variant, dtype: torch.dtype) -> None:
        matrices = self.matrices(dtype)
        module = self.fill(self.experts(variant, dtype), self.jobs(variant, matrices))
        for rows, top_k in ((1, 1), (0, 2), (2, 3), (19, 2)):
            x = self.random(rows, self.features // 2, dtype=dtype, seed=rows)
            ids, weights = self.routed(rows, top_k)
            got = module(x, ids, weights)
            assert got.shape == x.shape
            self.assert_experts(variant, got, matrices, x, ids, weights)

    def test_stacked_experts_are_the_same(self, variant: Variant) -> None:
        """Checkpoints that hold all experts in one tensor (gate_up_proj [E, 2I, H], down_proj [E, H, I])."""
        self.require(variant.hf_config is None, f"{variant.label}: stacked experts in a quantized checkpoint")
        matrices, everyone = self.matrices(torch.float32), range(self.num_experts)
        one_by_one = self.fill(self.experts(variant, torch.float32), self.jobs(variant, matrices))
        stacked: list[Job] = [
            (suffix, "", torch.stack([torch.cat([matrices[part, e] for part in parts]) for e in everyone]), None)
            for suffix, parts in STACKED.items()
        ]
        module = self.experts(variant, torch.float32)
        covered = set().union(*(module.covers(suffix, "") for suffix, *_ in stacked))
        self.require(covered == module.expected(), f"{variant.label}: stacked experts")
        self.fill(module, stacked)
        x = self.random(6, self.features // 2, dtype=torch.float32, seed=5)
        ids, weights = self.routed(6, 2)
        assert torch.equal(module(x, ids, weights), one_by_one(x, ids, weights))

    def test_experts_account_for_every_tensor(self, variant: Variant) -> None:
        matrices = self.matrices(torch.float32)
        module = self.experts(variant, torch.float32)
        expected = module.expected()
        assert {expert for *_, expert in expected} >= set(range(self.num_experts)) or any(e == -1 for *_, e in expected)
        weight = matrices["gate", 0]
        strangers = (("weight", "gate", self.num_experts), ("weight", "over", 0), ("nonsense", "up", 0))
        for suffix, part, expert in strangers:
            assert module.covers(suffix, part, expert) - expected, f"core would take {suffix} of {part} {expert}"
        for part, tensor in (
            ("gate", weight[:, :-1]), ("down", weight[:-1]), ("up", torch.zeros(weight.shape, dtype=torch.complex64)),
        ):  # fmt: skip
            module = self.experts(variant, torch.float32)
            jobs = [
                (job[0], job[1], tensor if job[:2] == ("weight", part) and job[3] == 1 else job[2], job[3])
                for job in self.jobs(variant, matrices)
            ]
            with pytest.raises(WeightError):
                self.fill(module, jobs)

    @pytest.mark.parametrize("size", [2, 3, 4])
    def test_ranks_together_are_the_experts(self, variant: Variant, size: int) -> None:
        """Each rank has a share of every expert's intermediate size; their results add up."""
        matrices = self.matrices(torch.float32)
        x = self.random(7, self.features // 2, dtype=torch.float32, seed=8)
        ids, weights = self.routed(7, 2)
        total = torch.zeros_like(x)
        for rank in range(size):
            module = self.experts(variant, torch.float32, Rank(rank, size))
            total += self.fill(module, self.jobs(variant, matrices))(x, ids, weights)
        self.assert_experts(variant, total, matrices, x, ids, weights)
