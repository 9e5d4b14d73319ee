"""MoeContract: a runner of experts against a plain loop over tokens in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from core.interfaces.moe import PLAIN, ExpertWeights, MoeRunner
from core.layers.config import ACTIVATIONS
from core.testing.contracts.base import Contract

_ACTIVATE: Mapping[tuple[str, str | None], Callable[[torch.Tensor], torch.Tensor]] = {
    ("silu_and_mul", None): F.silu,
    ("gelu_and_mul", "none"): F.gelu,
    ("gelu_and_mul", "tanh"): lambda gate: F.gelu(gate, approximate="tanh"),
}


class MoeContract(Contract):
    """The parts an author gives, where they are not the default.

    dtypes: compute types. activations: those that the runner knows. format_errors: largest relative error, beside that
    of the dtype, of each format but the plain one.
    """

    kind = "moe"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")
    activations: ClassVar[tuple[str, ...]] = tuple(ACTIVATIONS)
    format_errors: ClassVar[dict[str, float]] = {}

    def packed(self, format_: str, weights: ExpertWeights) -> ExpertWeights:
        """Plain weights in a format of this runner. Needed for formats other than "plain"."""
        if format_ != PLAIN:
            raise NotImplementedError(f"give {type(self).__name__}.packed for format {format_!r}")
        return weights

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "dtype" in metafunc.fixturenames:
            metafunc.parametrize("dtype", [getattr(torch, name) for name in self.dtypes], ids=self.dtypes)
        if "activation" in metafunc.fixturenames:
            metafunc.parametrize("activation", sorted(ACTIVATIONS))

    def runner(self) -> MoeRunner:
        runner: MoeRunner = self.plugin()(self.context(self.device()))
        return runner

    def weights(
        self, num: int, hidden: int, inter: int, dtype: torch.dtype, activation: str = "silu", seed: int = 0
    ) -> ExpertWeights:
        """Plain, random."""
        gate_up = self.random(num, 2 * inter, hidden, dtype=dtype, seed=seed + 1, scale=hidden**-0.5)
        down = self.random(num, hidden, inter, dtype=dtype, seed=seed + 2, scale=inter**-0.5)
        return ExpertWeights(gate_up, down, activation=activation)

    def routing(self, tokens: int, num: int, top_k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """(topk_ids, topk_weights): no expert twice in a row, in no order, weights that need not sum to one."""
        order = self.random(tokens, num, dtype=torch.float32, seed=seed + 3).argsort(-1)
        weights = self.random(tokens, top_k, dtype=torch.float32, seed=seed + 4)
        return order[:, :top_k].contiguous(), weights

    def check(
        self, runner: MoeRunner, x: torch.Tensor, plain: ExpertWeights, ids: torch.Tensor, scales: torch.Tensor,
        format_: str = PLAIN,
    ) -> torch.Tensor:  # fmt: skip
        got = runner.run(x, self.packed(format_, plain), ids, scales)
        assert got.dtype == x.dtype, f"the result is {got.dtype}, not {x.dtype}"
        want, usual = loop(x, plain, ids, scales)
        extra = self.format_errors.get(format_, 0.0)
        self.assert_close(got, want, x.dtype, "the experts' sum", extra=extra, sizes=usual)
        return got

    # Claims

    def test_formats(self) -> None:
        """Each is plain or has a `packed`; core matches quantization methods with them by name."""
        formats = self.plugin().formats
        assert isinstance(formats, frozenset)
        assert formats
        stated = self.record().capabilities.get("formats")
        assert stated is None or set(stated) == formats, f"the manifest says {stated}, the class {sorted(formats)}"
        for format_ in formats:
            made = self.packed(format_, self.weights(3, 64, 64, torch.bfloat16))
            assert made.format == format_, f"packed() gave {made.format!r} for {format_!r}"

    # Numbers

    def test_random_batches(self, dtype: torch.dtype) -> None:
        runner = self.runner()
        formats = sorted(self.plugin().formats)

        def run(sizes: tuple[int, int, int, int, int, int]) -> None:
            tokens, num, top_k, hidden, inter, seed = sizes
            plain = self.weights(num, hidden, inter, dtype, self.activations[seed % len(self.activations)], seed)
            x = self.random(tokens, hidden, dtype=dtype, seed=seed)
            ids, scales = self.routing(tokens, num, min(top_k, num), seed)
            # Other formats hold blocks, of sizes that random ones do not fill.
            self.check(runner, x, plain, ids, scales, PLAIN if PLAIN in formats else formats[0])

        small = st.integers(1, 40)
        sizes = st.tuples(st.integers(0, 20), st.integers(1, 9), st.integers(1, 9), small, small, st.integers(0, 999))
        self.for_all(sizes, run, examples=40)

    def test_every_format(self, dtype: torch.dtype) -> None:
        runner = self.runner()
        for format_ in sorted(self.plugin().formats):
            plain = self.weights(5, 128, 256, dtype)
            for tokens in (1, 2, 33):
                x = self.random(tokens, 128, dtype=dtype, seed=tokens)
                self.check(runner, x, plain, *self.routing(tokens, 5, 2), format_)

    def test_every_number_of_experts_a_token(self) -> None:
        plain, x = self.weights(6, 32, 48, torch.float32), self.random(7, 32, dtype=torch.float32)
        for top_k in range(1, 7):
            self.check(self.runner(), x, plain, *self.routing(7, 6, top_k))

    def test_activations(self, activation: str, dtype: torch.dtype) -> None:
        self.require(activation in self.activations, f"activation {activation}")
        plain = self.weights(4, 32, 48, dtype, activation)
        for tokens in (1, 150):
            x = self.random(tokens, 32, dtype=dtype)
            self.check(self.runner(), x, plain, *self.routing(tokens, 4, 2))

    def test_no_tokens(self, dtype: torch.dtype) -> None:
        plain, x = self.weights(4, 32, 48, dtype), self.random(0, 32, dtype=dtype)
        got = self.check(self.runner(), x, plain, *self.routing(0, 4, 2))
        assert got.shape == (0, 32)

    def test_many_tokens_over_few_and_over_one_expert(self, dtype: torch.dtype) -> None:
        """Experts that nobody chose, and one that all chose."""
        plain, x = self.weights(8, 64, 96, dtype), self.random(300, 64, dtype=dtype)
        ids, scales = self.routing(300, 3, 2)
        self.check(self.runner(), x, plain, ids + 5, scales)
        self.check(self.runner(), x, plain, torch.full_like(ids[:, :1], 7), scales[:, :1].contiguous())

    def test_sums_over_experts_are_in_float32(self) -> None:
        """A running sum of 300 equal terms in bfloat16 would stall far below their total."""
        self.require("bfloat16" in self.dtypes, "dtype bfloat16")
        one = self.weights(1, 8, 8, torch.bfloat16)
        plain = ExpertWeights(one.gate_up.expand(300, -1, -1).contiguous(), one.down.expand(300, -1, -1).contiguous())
        x = self.random(2, 8, dtype=torch.bfloat16)
        ids = torch.arange(300, device=x.device).expand(2, -1).contiguous()
        self.check(self.runner(), x, plain, ids, torch.full((2, 300), 1 / 300, device=x.device))

    # Manners

    def test_a_padding_row_shows_in_no_other(self) -> None:
        plain, x = self.weights(4, 32, 48, torch.float32), self.random(9, 32, dtype=torch.float32)
        ids, scales = self.routing(9, 4, 2)
        x[6:] = float("nan")
        got = self.runner().run(x, self.packed(PLAIN, plain), ids, scales)[:6]
        want, usual = loop(x[:6], plain, ids[:6], scales[:6])
        self.assert_close(got, want, torch.float32, "the rows before it", sizes=usual)

    def test_rows_that_lie_apart(self, dtype: torch.dtype) -> None:
        plain, wide = self.weights(4, 32, 48, dtype), self.random(10, 64, dtype=dtype)
        ids, scales = self.routing(10, 4, 2)
        for x in (wide[:, 32:], wide[:, :32]):
            self.check(self.runner(), x, plain, ids, scales)

    def test_arguments_stay_as_they_are(self) -> None:
        for tokens in (2, 100):
            plain, x = self.weights(4, 32, 48, torch.float32), self.random(tokens, 32, dtype=torch.float32)
            given = [x, *self.routing(tokens, 4, 2), plain.gate_up, plain.down]
            before = [tensor.clone() for tensor in given]
            self.runner().run(x, plain, given[1], given[2])
            assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True)), "an argument was changed"

    def test_layers_do_not_disturb_each_other(self) -> None:
        """One runner serves all layers of an engine."""
        runner, x = self.runner(), self.random(5, 32, dtype=torch.float32)
        first, second = (self.weights(4, 32, 48, torch.float32, seed=seed) for seed in (0, 50))
        ids, scales = self.routing(5, 4, 2)
        one = self.check(runner, x, first, ids, scales)
        kept = one.clone()
        self.check(runner, x, second, ids, scales)
        assert torch.equal(one, kept), "a later call changes an earlier result"
        self.check(runner, x, first, ids, scales)


def loop(
    x: torch.Tensor, weights: ExpertWeights, ids: torch.Tensor, scales: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, token by token in float64: sum of scale * down(act(gate(x)) * up(x)) over the chosen, [T, H]; and
    [T] how large it would be if its terms did not cancel out, which is what their rounding goes by."""
    activate = _ACTIVATE[ACTIVATIONS[weights.activation]]
    gate_up, down, x = weights.gate_up.cpu().double(), weights.down.cpu().double(), x.cpu().double()
    out, squares = torch.zeros(x.shape, dtype=torch.float64), torch.zeros(x.shape[0], dtype=torch.float64)
    for row, (experts, factors) in enumerate(zip(ids.tolist(), scales.tolist(), strict=True)):
        for expert, factor in zip(experts, factors, strict=True):
            gate, up = (gate_up[expert] @ x[row]).chunk(2)
            hidden = activate(gate) * up
            out[row] += factor * (down[expert] @ hidden)
            squares[row] += factor**2 * (down[expert].square() @ hidden.square()).sum()
    return out, squares.sqrt()
