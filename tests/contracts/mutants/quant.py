"""Broken quantization methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from core.interfaces.errors import ConfigError, WeightError
from core.interfaces.quant import (
    ExpertsMethod,
    ExpertsShape,
    LinearMethod,
    LinearPart,
    LinearShape,
    QuantFacts,
    QuantMethod,
)
from core.layers.unquantized import STACKED, Unquantized, UnquantizedExperts, UnquantizedLinear
from core.testing.contracts.quant import QuantContract
from core.testing.contracts.quant_setup import Variant
from tests.contracts.toy_quant import GROUP, Toy, ToyLinear
from tests.contracts.toy_setup import ToySetup


def _toy(method: type[ToyLinear]) -> type[Toy]:
    return type("Broken", (Toy,), {"linear_method": method})


class _Mutant(ToySetup):
    caught_by: ClassVar[tuple[str, ...]] = ()


class TestKeepsTheFirstRows(_Mutant):
    """Every rank the same ones."""

    caught_by = ("test_ranks_together_hold_the_layer",)

    class _Linear(ToyLinear):
        def copy(self, target: torch.Tensor, place: LinearPart, tensor: torch.Tensor) -> None:
            super().copy(target, replace(place, shard_offset=0), tensor)

    implementation = _toy(_Linear)


class TestKeepsTheFirstColumns(_Mutant):
    caught_by = ("test_ranks_together_hold_the_layer",)

    class _Linear(ToyLinear):
        def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
            super().load(module, replace(shape, in_offset=0), suffix, part, tensor)

    implementation = _toy(_Linear)


class TestScalesOfTheFirstColumns(_Mutant):
    """The weight is cut where it should be, its scales are not."""

    caught_by = ("test_ranks_together_hold_the_layer",)

    class _Linear(ToyLinear):
        def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
            super().load(module, replace(shape, in_offset=0) if suffix == "scale" else shape, suffix, part, tensor)

    implementation = _toy(_Linear)


class TestStacksPartsTheOtherWay(_Mutant):
    caught_by = ("test_the_weight_is_what_the_checkpoint_holds",)

    class _Linear(ToyLinear):
        def copy(self, target: torch.Tensor, place: LinearPart, tensor: torch.Tensor) -> None:
            super().copy(target, replace(place, offset=target.shape[0] - place.offset - place.out_features), tensor)

    implementation = _toy(_Linear)


class TestLeavesPaddingRows(_Mutant):
    """Rows past the vocabulary's end keep what memory held."""

    caught_by = ("test_a_vocabulary_that_does_not_divide",)

    class _Linear(ToyLinear):
        def copy(self, target: torch.Tensor, place: LinearPart, tensor: torch.Tensor) -> None:
            super().copy(target, place, tensor)
            rows = max(0, min(place.out_features, place.full_out_features - place.shard_offset))
            target[place.offset + rows : place.offset + place.out_features] = 1

    implementation = _toy(_Linear)


class TestForgetsTheBias(_Mutant):
    caught_by = ("test_apply_multiplies_with_dense", "test_odd_sizes")

    class _Linear(ToyLinear):
        def apply(self, module: Any, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, self.unpacked(module, x.dtype))

    implementation = _toy(_Linear)


class TestDenseIsAnother(_Mutant):
    caught_by = ("test_apply_multiplies_with_dense",)

    class _Linear(ToyLinear):
        def dense(self, module: Any, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
            return super().dense(module, shape, dtype, device) * 1.003

    implementation = _toy(_Linear)


class TestIsWorseThanItClaims(_Mutant):
    caught_by = ("test_the_weight_is_what_the_checkpoint_holds",)
    variants = (Variant("made while loading", weight_error=0.001),)
    implementation = Toy


class TestTakesAnySuffix(_Mutant):
    caught_by = ("test_what_is_unknown_is_refused",)

    class _Linear(ToyLinear):
        def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
            if (suffix, part) in self.expected(shape):
                super().load(module, shape, suffix, part, tensor)

    implementation = _toy(_Linear)


class TestExpectsTooLittle(_Mutant):
    """Scales may be missing, and then are what memory held."""

    caught_by = ("test_nothing_may_be_missing",)

    class _Linear(ToyLinear):
        def create(self, module: Any, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> None:
            super().create(module, shape, dtype, device)
            module.scale.data.fill_(1)

        def expected(self, shape: LinearShape) -> set[tuple[str, str]]:
            return {slot for slot in super().expected(shape) if slot[0] != "scale"}

        def optional(self, shape: LinearShape) -> set[tuple[str, str]]:
            return super().expected(shape) - self.expected(shape)

        def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
            if suffix != "scale":
                super().load(module, shape, suffix, part, tensor)
                return
            place = next(place for place in shape.parts if place.name == part)
            first, width = shape.in_offset // GROUP, shape.in_features // GROUP
            self.copy(module.scale.data, place, tensor.narrow(1, first, width))

    implementation = _toy(_Linear)


class TestBroadcastsWhatDoesNotFit(_Mutant):
    caught_by = ("test_a_tensor_that_does_not_fit_is_refused",)

    class _Linear(ToyLinear):
        def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
            rows = shape.parts[0].full_out_features
            super().load(module, shape, suffix, part, tensor[:rows] if tensor.dim() == 1 else tensor)

    implementation = _toy(_Linear)


class TestRaisesTorchErrors(_Mutant):
    caught_by = ("test_a_tensor_that_does_not_fit_is_refused",)

    class _Linear(ToyLinear):
        def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
            try:
                super().load(module, shape, suffix, part, tensor)
            except WeightError as error:
                raise RuntimeError(str(error)) from error

    implementation = _toy(_Linear)


class TestQuantizesWhenTheLastTensorComes(_Mutant):
    """... taking the order of a file for granted."""

    caught_by = ("test_any_order_and_any_thread_gives_the_same",)

    class _Scaled(ToyLinear):
        def create(self, module: Any, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> None:
            super().create(module, shape, dtype, device)
            module.scale.data.fill_(float("inf"))

        def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
            super().load(module, shape, suffix, part, tensor)
            if suffix == "bias":  # nothing while a weight is missing
                module.bias.data.mul_(float(bool(module.scale.data.isfinite().all())))

    implementation = _toy(_Scaled)


class TestSkipsByTheBeginning(_Mutant):
    """layers.1 takes layers.10 with it."""

    caught_by = ("test_a_skipped_module_is_left_alone_and_its_namesakes_are_not",)

    class implementation(Toy):  # noqa: N801
        def skipped(self, path: str, sources: Sequence[str]) -> bool:
            entries = (self.config if self.config is not None else self.ctx.settings).get("skip", ())
            return any(source.startswith(entry) for entry in entries for source in sources)


class TestSkipsNothing(_Mutant):
    caught_by = ("test_a_skipped_module_is_left_alone_and_its_namesakes_are_not",)

    class implementation(Toy):  # noqa: N801
        def skipped(self, path: str, sources: Sequence[str]) -> bool:
            return False


class TestSkipsAllForOne(_Mutant):
    """A fused layer of which one part is named."""

    caught_by = ("test_a_fused_layer_skipped_in_part",)

    class implementation(Toy):  # noqa: N801
        def skipped(self, path: str, sources: Sequence[str]) -> bool:
            return any(Toy.skipped(self, path, [source]) for source in sources)


class TestRefusesWithoutAWayOut(_Mutant):
    caught_by = ("test_odd_sizes",)

    class _Linear(ToyLinear):
        def check_cut(self, shape: LinearShape) -> None:
            if shape.in_features % GROUP:
                raise ConfigError("no")

    implementation = _toy(_Linear)


class TestRefusesTooLate(_Mutant):
    """What cannot be held shows when it is used."""

    caught_by = ("test_a_refusal_comes_before_weights_are_read", "test_odd_sizes")

    class implementation(Unquantized):  # noqa: N801
        def linear(self, path: str, sources: Sequence[str]) -> LinearMethod:
            return _Late()

    variants = (Variant("unquantized"),)


class _Late(UnquantizedLinear):
    def apply(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] % 32:
            raise ConfigError("inputs are not whole groups", field="model.quantization", hint="use another format")
        return super().apply(module, x)


class TestRecognisesAll(_Mutant):
    caught_by = ("test_it_recognises_its_checkpoints_and_no_others",)

    class implementation(Toy):  # noqa: N801
        @classmethod
        def recognises(cls, hf_quant_config: Mapping[str, Any] | None) -> bool:
            return hf_quant_config is not None


class TestRefusesItsOwn(_Mutant):
    caught_by = ("test_refusals_are_text",)

    class implementation(Toy):  # noqa: N801
        def rejects(self, facts: QuantFacts) -> str | None:
            return "no bfloat16" if facts.dtype == "bfloat16" else None


class TestKeepsTheOriginal(_Mutant):
    caught_by = ("test_it_takes_less_memory",)

    class _Linear(ToyLinear):
        def load(self, module: Any, shape: LinearShape, suffix: str, part: str, tensor: torch.Tensor) -> None:
            super().load(module, shape, suffix, part, tensor)
            module.__dict__.setdefault("originals", []).append({"tensor": tensor.float()})

    implementation = _toy(_Linear)


class TestKeepsWideCopiesOfAllLayersTogether(_Mutant):
    """Reached through what all layers share, and yet one more for each."""

    caught_by = ("test_it_takes_less_memory",)

    class _Linear(ToyLinear):
        copies: ClassVar[list[torch.Tensor]] = []

        def finish(self, module: Any, shape: LinearShape) -> None:
            super().finish(module, shape)
            self.copies.append(self.unpacked(module, torch.float32))
            module.__dict__["copies"] = self.copies

    implementation = _toy(_Linear)


class TestUsesOneBufferForAllResults(_Mutant):
    caught_by = ("test_apply_neither_keeps_nor_changes_its_input",)

    class _Linear(ToyLinear):
        def apply(self, module: Any, x: torch.Tensor) -> torch.Tensor:
            out = super().apply(module, x)
            buffer = module.__dict__.setdefault("buffer", torch.empty_like(out))
            return buffer.copy_(out) if buffer.shape == out.shape else out

    implementation = _toy(_Linear)


class _BrokenExperts(QuantContract):
    caught_by: ClassVar[tuple[str, ...]] = ()
    variants = (Variant("unquantized"),)


def _method(experts: type[ExpertsMethod]) -> type[QuantMethod]:
    return type("Broken", (Unquantized,), {"experts": lambda self, path, sources: experts()})


class TestSwapsGateAndUp(_BrokenExperts):
    caught_by = ("test_experts_against_a_loop", "test_stacked_experts_are_the_same")

    class _Experts(UnquantizedExperts):
        def load(self, module: Any, shape: ExpertsShape, suffix: str, part: str, expert: int, tensor: Any) -> None:
            super().load(module, shape, suffix, {"gate": "up", "up": "gate"}.get(part, part), expert, tensor)

    implementation = _method(_Experts)


class TestFirstShareOfEveryExpert(_BrokenExperts):
    caught_by = ("test_ranks_together_are_the_experts",)

    class _Experts(UnquantizedExperts):
        def load(self, module: Any, shape: ExpertsShape, suffix: str, part: str, expert: int, tensor: Any) -> None:
            super().load(module, replace(shape, intermediate_offset=0), suffix, part, expert, tensor)

    implementation = _method(_Experts)


class TestStackedTensorCoversTooMuch(_BrokenExperts):
    caught_by = ("test_experts_account_for_every_tensor",)

    class _Experts(UnquantizedExperts):
        def covers(self, shape: ExpertsShape, suffix: str, part: str, expert: int) -> Any:
            return self.expected(shape) if suffix not in STACKED else super().covers(shape, suffix, part, expert)

    implementation = _method(_Experts)


class TestForgetsTheLastExpert(_BrokenExperts):
    caught_by = ("test_experts_account_for_every_tensor",)

    class _Experts(UnquantizedExperts):
        def expected(self, shape: ExpertsShape) -> Any:
            return {slot for slot in super().expected(shape) if slot[2] != shape.num_experts - 1}

    implementation = _method(_Experts)
