"""OpsContract: every operation that a table offers against core's reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import strategies as st

from core.ops.reference import REFERENCES
from core.ops.table import build_ops
from core.testing.contracts.base import Contract
from core.testing.contracts.ops_cases import CASES, FLOAT32, Call, Maker, Results, canonical

Table = Mapping[str, Callable[..., Any]]


class OpsContract(Contract):
    """Names and signatures are those of `core.ops.reference`, which says what each operation does. Operations that a
    table leaves out are listed as not claimed.

    dtypes: of the arguments. sizes: widths to take in turn, beside odd ones.
    """

    kind = "ops"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16")
    sizes: ClassVar[tuple[int, ...]] = (64, 128, 2048)

    def table(self) -> Table:
        """What is tested; also the table of a hardware backend can be."""
        table: Table = self.plugin()(self.context(self.device())).ops()
        return table

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "dtype" in metafunc.fixturenames:
            metafunc.parametrize("dtype", [getattr(torch, name) for name in self.dtypes], ids=self.dtypes)
        if "op" in metafunc.fixturenames:
            metafunc.parametrize("op", sorted(REFERENCES))

    def test_names_are_known_and_fit_together(self) -> None:
        """As core merges tables: an unknown name is an error, and so is `linear` without `pack_linear_weight`."""
        table = self.table()
        assert table, "the table is empty"
        merged = build_ops(table)
        assert all(merged[name] is op for name, op in table.items())

    def test_it_gives_what_the_reference_gives(self, op: str, dtype: torch.dtype) -> None:
        self.claimed(op)
        if op in FLOAT32 and dtype is not getattr(torch, self.dtypes[0]):
            pytest.skip(f"{op}: the arguments are float32 in every case")
        table = self.table()

        def check(how: tuple[int, int, bool, int]) -> None:
            rows, size, apart, variety = how
            call = CASES[op](Maker(rows, size, dtype, self.device(), apart, variety))
            before = _copies(call.args)
            got = self.results(table, op, call)
            self.assert_kept(call, before)
            want = self.results(REFERENCES, op, _exact(replace(call, args=before)))
            self.compare(op, call, got, want, dtype)

        widths = st.one_of(st.integers(1, 70), st.sampled_from(self.sizes))
        rows = st.one_of(st.integers(0, 20), st.sampled_from([0, 1, 33, 130]))
        self.for_all(st.tuples(rows, widths, st.booleans(), st.integers(0, 99_999)), check, examples=25)

    def test_no_rows(self, op: str, dtype: torch.dtype) -> None:
        self.claimed(op)
        call = CASES[op](Maker(0, 64, dtype, self.device(), False, 1))
        want = self.results(REFERENCES, op, replace(call, args=_copies(call.args)))
        got = self.results(self.table(), op, call)
        assert [x.shape for x in got] == [x.shape for x in want]
        assert [x.dtype for x in got] == [x.dtype for x in want]

    def test_results_are_the_callers(self, op: str) -> None:
        """A later call leaves an earlier result alone."""
        self.claimed(op)
        table = self.table()
        dtype = getattr(torch, self.dtypes[0])
        first, second = (CASES[op](Maker(5, 64, dtype, self.device(), False, variety)) for variety in (3, 3))
        second = CASES[op](Maker(5, 64, dtype, self.device(), False, 4)) if op not in _FIXED else second
        kept = self.results(table, op, first)
        copies = _copies(kept)
        self.results(table, op, second)
        assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True)), "a later call changes it"

    def claimed(self, op: str) -> None:
        self.require(op in self.table(), f"operation {op}")
        if op not in CASES:
            pytest.skip(f"the suite has no calls for {op} yet")

    def results(self, table: Table, op: str, call: Call) -> Results:
        if op in _FIXED:
            x, weight, bias = call.args
            packed = build_ops(table)["pack_linear_weight"](weight) if op == "pack_linear_weight" else weight
            out = build_ops(table)["linear"](x, packed, bias)
        elif op == "fused_linear":
            x, weight, bias = call.args
            out = table[op](x, build_ops(table)["pack_linear_weight"](weight), bias, **call.kwargs)
        else:
            out = table[op](*call.args, **call.kwargs)
        returned = out if isinstance(out, tuple) else (out,)
        written = tuple(call.args[position] for position in call.results)
        return canonical(op, call, tuple(tensor for tensor in returned if tensor is not None) + written)

    def assert_kept(self, call: Call, before: tuple[Any, ...]) -> None:
        for position, (now, then) in enumerate(zip(call.args, before, strict=True)):
            if isinstance(now, torch.Tensor) and position not in call.changes:
                same = torch.allclose(now, then, rtol=0, atol=0, equal_nan=True) if now.is_floating_point() else None
                assert torch.equal(now, then) if same is None else same, f"argument {position} was changed"

    def compare(self, op: str, call: Call, got: Results, want: Results, dtype: torch.dtype) -> None:
        assert len(got) == len(want), f"{op} returns {len(got)} tensors, not {len(want)}"
        for number, (mine, reference) in enumerate(zip(got, want, strict=True)):
            what = f"{op}, result {number}"
            if not mine.dtype.is_floating_point:
                assert torch.equal(mine.cpu(), reference.cpu()), what
                continue
            expected = call.dtype or dtype
            assert mine.dtype == expected, f"{what} is {mine.dtype}, not {expected}"
            assert mine.shape == reference.shape, f"{what} has shape {tuple(mine.shape)}"
            if op in _COPIES:
                assert torch.equal(mine.double().cpu(), reference.double().cpu()), f"{what} is not a copy"
                continue
            none = reference.isneginf()
            if none.any():  # a threshold that keeps all
                assert torch.equal(mine.isneginf(), none), f"{what}: -inf in other places"
                mine, reference = mine.masked_fill(none, 0), reference.masked_fill(none, 0)
            sizes = None
            if op in _FIXED and mine.shape[0]:
                x, weight, _ = call.args
                sizes = x.double().norm(dim=1) * weight.double().norm() / weight.shape[1] ** 0.5
            self.assert_close(mine, reference, expected, what, sizes=sizes)


_FIXED = ("linear", "pack_linear_weight")
_COPIES = ("store_kv", "embedding")


def _copies(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in values)


def _exact(call: Call) -> Call:
    """The call with floating-point arguments in float64, where the reference computes as exactly as it can."""
    if call.same:
        return call
    kwargs = {name: _wide(value) for name, value in call.kwargs.items()}
    return replace(call, args=tuple(_wide(value) for value in call.args), kwargs=kwargs)


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
