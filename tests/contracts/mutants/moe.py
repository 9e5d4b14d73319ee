"""Broken runners of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from core.interfaces.context import PluginContext
from core.interfaces.moe import ExpertWeights
from core.layers.moe import TorchNativeMoe
from core.testing.contracts.moe import MoeContract, loop

_NUMBERS = ("test_random_batches", "test_every_number_of_experts_a_token")


class _Mutant(MoeContract):
    caught_by: ClassVar[tuple[str, ...]] = _NUMBERS


class TestSwapsGateAndUp(_Mutant):
    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            up_gate = weights.gate_up.roll(weights.gate_up.shape[1] // 2, 1)
            return super().run(x, replace(weights, gate_up=up_gate), topk_ids, topk_weights)


class TestIgnoresTheWeights(_Mutant):
    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            return super().run(x, weights, topk_ids, torch.full_like(topk_weights, 1 / topk_weights.shape[1]))


class TestRenormalizes(_Mutant):
    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            return super().run(x, weights, topk_ids, topk_weights / topk_weights.sum(-1, keepdim=True))


class TestTheFirstChoiceOnly(_Mutant):
    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            return super().run(x, weights, topk_ids[:, :1], topk_weights[:, :1])


class TestForgetsTheLastExpert(_Mutant):
    caught_by = (*_NUMBERS, "test_many_tokens_over_few_and_over_one_expert")

    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            last = weights.gate_up.shape[0] - 1
            return super().run(x, weights, topk_ids, topk_weights.masked_fill(topk_ids == last, 0))


class TestOneActivation(_Mutant):
    caught_by = ("test_activations", "test_random_batches")

    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            return super().run(x, replace(weights, activation="silu"), topk_ids, topk_weights)


class TestNeedsTokens(_Mutant):
    caught_by = ("test_no_tokens",)

    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            assert int(topk_ids.max()) >= 0
            return super().run(x, weights, topk_ids, topk_weights)


class TestSumsInItsOwnDtype(_Mutant):
    caught_by = ("test_sums_over_experts_are_in_float32",)

    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            out = torch.zeros_like(x)
            for choice in range(topk_ids.shape[1]):
                one = slice(choice, choice + 1)
                out += super().run(x, weights, topk_ids[:, one], topk_weights[:, one])
            return out


class TestMixesRows(_Mutant):
    """Every expert over every token, by matrices of zeros and ones."""

    caught_by = ("test_a_padding_row_shows_in_no_other",)

    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            return torch.eye(x.shape[0], dtype=x.dtype) @ super().run(x, weights, topk_ids, topk_weights)


class TestTakesRowsForContiguous(_Mutant):
    caught_by = ("test_rows_that_lie_apart",)

    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            return super().run(x.as_strided(x.shape, (x.shape[1], 1)), weights, topk_ids, topk_weights)


class TestUsesUpItsInput(_Mutant):
    caught_by = ("test_arguments_stay_as_they_are",)

    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            out = super().run(x, weights, topk_ids, topk_weights)
            x.copy_(out)
            return out


class TestRemembersTheFirstLayer(_Mutant):
    caught_by = ("test_layers_do_not_disturb_each_other",)

    class implementation(TorchNativeMoe):  # noqa: N801
        def __init__(self, ctx: PluginContext) -> None:
            super().__init__(ctx)
            self.kept: ExpertWeights | None = None

        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            self.kept = self.kept or weights
            return super().run(x, self.kept, topk_ids, topk_weights)


class TestReturnsFloat32(_Mutant):
    caught_by = ("test_random_batches",)

    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            return loop(x, weights, topk_ids, topk_weights)[0].float()


class TestClaimsAFormatItCannotRead(_Mutant):
    """Takes "halves", which holds weights at half their size, for plain."""

    caught_by = ("test_every_format",)

    class implementation(TorchNativeMoe):  # noqa: N801
        formats = frozenset({"plain", "halves"})

    def packed(self, format_: str, weights: ExpertWeights) -> ExpertWeights:
        return replace(weights, down=weights.down / 2, format=format_) if format_ == "halves" else weights


class TestClaimsNoFormat(_Mutant):
    caught_by = ("test_formats",)

    class implementation(TorchNativeMoe):  # noqa: N801
        formats: ClassVar[frozenset[str]] = frozenset()


class TestScalesTheInput(_Mutant):
    """Which is the same only for experts without an activation."""

    class implementation(TorchNativeMoe):  # noqa: N801
        def run(self, x: Any, weights: ExpertWeights, topk_ids: Any, topk_weights: Any) -> torch.Tensor:
            out = torch.zeros(x.shape)
            for choice in range(topk_ids.shape[1]):
                for row, expert in enumerate(topk_ids[:, choice].tolist()):
                    gate, up = (weights.gate_up[expert].float() @ (x[row].float() * topk_weights[row, choice])).chunk(2)
                    out[row] += weights.down[expert].float() @ (F.silu(gate) * up)
            return out.to(x.dtype)
