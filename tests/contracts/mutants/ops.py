"""Broken tables of operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from core.ops import reference
from core.ops.reference import REFERENCES
from core.testing.contracts.ops import OpsContract, Table

_NUMBERS = ("test_it_gives_what_the_reference_gives",)


class _Mutant(OpsContract):
    name = "cpu_native"
    caught_by: ClassVar[tuple[str, ...]] = _NUMBERS
    changed: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    dtypes = ("float32", "bfloat16")

    def table(self) -> Table:
        return self.changed

    def claimed(self, op: str) -> None:
        """Only what is broken is run."""
        self.require(op in self.changed, op)
        super().claimed(op)


def _linear_without_bias(x: Any, weight: Any, bias: Any = None) -> Any:
    return F.linear(x, weight)


class TestForgetsTheBias(_Mutant):
    changed = {"linear": _linear_without_bias, "pack_linear_weight": reference.pack_linear_weight}  # noqa: RUF012


class TestTransposesWhatItPacks(_Mutant):
    """... and only takes packed weights for packed ones when they are square."""

    changed = {  # noqa: RUF012
        "linear": reference.linear,
        "pack_linear_weight": lambda weight: weight.t().contiguous() if weight.shape[0] == weight.shape[1] else weight,
    }


class TestPacksInPlace(_Mutant):
    changed = {  # noqa: RUF012
        "linear": lambda x, weight, bias=None: F.linear(x, weight / 2, bias),
        "pack_linear_weight": lambda weight: weight.mul_(2),
    }


class TestLinearAlone(_Mutant):
    caught_by = ("test_names_are_known_and_fit_together",)
    changed = {"linear": reference.linear}  # noqa: RUF012


class TestUnknownName(_Mutant):
    caught_by = ("test_names_are_known_and_fit_together",)
    changed = {"rms_morn": reference.rms_norm}  # noqa: RUF012


class TestForgetsEpsilon(_Mutant):
    changed = {"rms_norm": lambda x, weight, eps: reference.rms_norm(x, weight, 0.0)}  # noqa: RUF012


def _norm_in_half(x: Any, weight: Any, eps: float) -> Any:
    return (x * (x.bfloat16().pow(2).mean(-1, keepdim=True) + eps).rsqrt().to(x.dtype)) * weight


class TestStatisticsInHalfPrecision(_Mutant):
    changed = {"qk_norm": _norm_in_half}  # noqa: RUF012


def _add_in_place(x: Any, residual: Any, weight: Any, eps: float) -> Any:
    residual.add_(x)
    return reference.rms_norm(residual, weight, eps), residual


class TestAddsInPlace(_Mutant):
    changed = {"add_rms_norm": _add_in_place}  # noqa: RUF012


def _returns_the_norm_twice(x: Any, residual: Any, weight: Any, eps: float) -> Any:
    out, _ = reference.add_rms_norm(x, residual, weight, eps)
    return out, out


class TestLosesTheResidual(_Mutant):
    changed = {"add_rms_norm": _returns_the_norm_twice}  # noqa: RUF012


class TestOneWayToRotate(_Mutant):
    changed = {"rope": lambda q, k, table, positions, interleaved=False: reference.rope(q, k, table, positions)}  # noqa: RUF012


def _turns_all(q: Any, k: Any, table: Any, positions: Any, *, interleaved: bool = False) -> Any:
    """Drops what is not turned."""
    q, k = reference.rope(q, k, table, positions, interleaved=interleaved)
    return tuple(torch.cat((x[..., : table.shape[1]], torch.zeros_like(x[..., table.shape[1] :])), -1) for x in (q, k))


class TestDropsWhatIsNotTurned(_Mutant):
    changed = {"rope": _turns_all}  # noqa: RUF012


def _norms_with_one_weight(
    qkv: Any, heads: Any, q_weight: Any, k_weight: Any, eps: float, table: Any, positions: Any, **how: Any
) -> Any:
    return reference.qk_norm_rope(qkv, heads, q_weight, q_weight, eps, table, positions, **how)


class TestNormsWithOneWeight(_Mutant):
    changed = {"qk_norm_rope": _norms_with_one_weight}  # noqa: RUF012


def _silu_of_contiguous(gate_up: Any) -> Any:
    rows, width = gate_up.shape
    return reference.silu_and_mul(gate_up.as_strided((rows, width), (width, 1)))


class TestTakesRowsForContiguous(_Mutant):
    changed = {"silu_and_mul": _silu_of_contiguous}  # noqa: RUF012


def _silu_of_some(gate_up: Any) -> Any:
    assert gate_up.shape[0]
    return reference.silu_and_mul(gate_up)


class TestNeedsRows(_Mutant):
    caught_by = ("test_no_rows",)
    changed = {"silu_and_mul": _silu_of_some}  # noqa: RUF012


class TestOneGelu(_Mutant):
    changed = {"gelu_and_mul": lambda x, approximate="none": reference.gelu_and_mul(x, "tanh")}  # noqa: RUF012


def _lightest_first(logits: Any, k: int, renormalize: bool) -> Any:
    weights, ids = reference.topk_softmax(logits, k, renormalize)
    return weights.flip(-1), ids.flip(-1)


class TestLightestFirst(_Mutant):
    changed = {"topk_softmax": _lightest_first}  # noqa: RUF012


class TestAlwaysRenormalizes(_Mutant):
    changed = {"topk_softmax": lambda logits, k, renormalize: reference.topk_softmax(logits, k, True)}  # noqa: RUF012


def _biased_weights(logits: Any, bias: Any, k: int, **how: Any) -> Any:
    weights, ids = reference.route_topk(logits, bias, k, **how)
    return (weights if bias is None else weights + bias[ids]), ids


class TestWeightsWithTheBias(_Mutant):
    """The correction is for the choice alone."""

    changed = {"route_topk": _biased_weights}  # noqa: RUF012


class TestChoosesAmongAllGroups(_Mutant):
    changed = {  # noqa: RUF012
        "route_topk": lambda logits, bias, k, **how: reference.route_topk(logits, bias, k, **how | {"num_groups": 1})
    }


def _stores_values_twice(k: Any, v: Any, k_cache: Any, v_cache: Any, slots: Any) -> None:
    reference.store_kv(k, v, k_cache, v_cache, slots)
    v_cache[(slots + 1) % len(v_cache)] = v


class TestStoresInTheNextSlotToo(_Mutant):
    changed = {"store_kv": _stores_values_twice}  # noqa: RUF012


class TestEmbeddingOfTheNext(_Mutant):
    changed = {"embedding": lambda ids, weight: weight[(ids + 1) % len(weight)]}  # noqa: RUF012


class _OneBuffer:
    def __init__(self) -> None:
        self.kept: dict[torch.Size, torch.Tensor] = {}

    def __call__(self, x: Any, weight: Any, eps: float) -> torch.Tensor:
        out = reference.rms_norm(x, weight, eps)
        return self.kept.setdefault(out.shape, torch.empty_like(out)).copy_(out)


class TestResultsInOneBuffer(_Mutant):
    caught_by = ("test_results_are_the_callers",)
    changed = {"qk_norm": _OneBuffer(), "rms_norm": _OneBuffer()}  # noqa: RUF012


def _other_noise(scaled: Any, spread: Any, keys: Any) -> Any:
    return REFERENCES["gumbel_argmax"](scaled, spread, keys + 1)


class TestNoiseOfAnotherStream(_Mutant):
    changed = {"gumbel_argmax": _other_noise}  # noqa: RUF012


class TestFiltersWithoutTopP(_Mutant):
    changed = {  # noqa: RUF012
        "sampling_threshold": lambda scaled, k, p, m, **known: REFERENCES["sampling_threshold"](
            scaled, k, torch.ones_like(p), m, **known | {"any_top_p": False}
        )
    }


class TestCountsThePromptToo(_Mutant):
    changed = {  # noqa: RUF012
        "penalize": lambda logits, counts, prompt, *factors: REFERENCES["penalize"](
            logits, counts + prompt.int(), prompt, *factors
        )
    }


class TestProbabilitiesForLogarithms(_Mutant):
    changed = {  # noqa: RUF012
        "token_logprobs": lambda logits, tokens, num: tuple(
            x.exp() if x.is_floating_point() else x for x in REFERENCES["token_logprobs"](logits, tokens, num)
        )
    }
