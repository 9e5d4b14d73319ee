"""Core's schedule policies and a vendor's through their suite."""

from __future__ import annotations

from collections.abc import Callable

from core.testing.contracts.schedule_policy import SchedulePolicyContract
from core.testing.mock_vendor import NewestFirst


class TestFcfs(SchedulePolicyContract):
    name = "fcfs"


class TestLongestPrefixMatch(SchedulePolicyContract):
    name = "lpm"


class TestDfsWeight(SchedulePolicyContract):
    name = "core:dfs-weight"


class TestLongestOutputFirst(SchedulePolicyContract):
    name = "lof"


class TestRandomOrder(SchedulePolicyContract):
    name = "random"
    draws = True


class TestNewestFirst(SchedulePolicyContract):
    """It plans the tokens of steps too."""

    implementation = NewestFirst


def test_broken_policies_are_caught(assert_caught: Callable[[str], None]) -> None:
    assert_caught("schedule_policy")
