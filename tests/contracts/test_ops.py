"""Tables of operations through their suite: this repository's plugin, the CPU's own, and the references."""

from __future__ import annotations

from collections.abc import Callable

import torch

from core.hardware.cpu_ops import cpu_ops
from core.ops.reference import REFERENCES
from core.testing.contracts.ops import OpsContract, Table
from core.testing.contracts.ops_cases import CASES


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


def test_broken_tables_are_caught(assert_caught: Callable[[str], None]) -> None:
    assert_caught("ops")
