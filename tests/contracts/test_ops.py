"""Tables of operations through their suite: this repository's plugin, the CPU's own, and the references."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from core.hardware.cpu_ops import cpu_ops
from core.ops.reference import REFERENCES
from core.testing.contracts.ops import OpsContract, Table
from core.testing.contracts.ops_cases import CASES, FLOAT32, Maker


class TestCpuNative(OpsContract):
    name = "cpu_native"


class TestCpu(OpsContract):
    """The table of the CPU's hardware backend."""

    name = "cpu_native"

    def table(self) -> Table:
        return cpu_ops(torch.get_num_threads())


class TestReferences(OpsContract):
    name = "cpu_native"

    def table(self) -> Table:
        return REFERENCES


def test_every_reference_has_calls_to_try() -> None:
    assert set(CASES) == set(REFERENCES)


@pytest.mark.parametrize("op", FLOAT32)
@pytest.mark.parametrize("variety", [0, 7])
def test_calls_that_are_made_for_one_type_are_the_same_for_others(op: str, variety: int) -> None:
    def tensors(dtype: torch.dtype) -> list[object]:
        call = CASES[op](Maker(5, 40, dtype, torch.device("cpu"), True, variety))
        return [*call.args, *call.kwargs.values()]

    for a, b in zip(tensors(torch.float32), tensors(torch.float16), strict=True):
        assert type(a) is type(b)
        assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


def test_broken_tables_are_caught(assert_caught: Callable[[str], None]) -> None:
    assert_caught("ops")
