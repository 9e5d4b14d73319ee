"""Lock sets: what the parent chose, checked in the child."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from core.interfaces.errors import PluginMismatch
from core.registry import Catalog, LockSet, PluginRecord

A = PluginRecord("moe", "fast", "plugin-a", "1.0")
B = PluginRecord("ops", "table", "plugin-b", "2.0")
LOCK = LockSet.of([B, A, A])


def test_sorted_unique_and_survives_the_wire() -> None:
    assert [str(p) for p in LOCK.plugins] == ["moe plugin-a:fast 1.0", "ops plugin-b:table 2.0"]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(LOCK), type=LockSet) == LOCK


def test_same_environment_passes() -> None:
    LOCK.verify(Catalog.from_records([A, B, replace(A, distribution="clashing")]))
    LOCK.check_same(LockSet.of([A, B]))


def test_every_difference_is_listed() -> None:
    with pytest.raises(PluginMismatch) as caught:
        LOCK.verify(Catalog.from_records([replace(A, version="1.1")]))
    text = str(caught.value)
    assert "moe plugin-a:fast 1.0: this process has version 1.1" in text
    assert "ops plugin-b:table 2.0: no ops plugin" in text
    assert caught.value.hint


def test_same_name_of_another_distribution_is_a_mismatch() -> None:
    with pytest.raises(PluginMismatch, match="plugin-a:fast"):
        LockSet.of([A]).verify(Catalog.from_records([replace(A, distribution="plugin-c")]))


def test_unavailable_is_a_mismatch() -> None:
    gone = replace(A, state="unavailable", reason="its manifest is missing")
    with pytest.raises(PluginMismatch, match="its manifest is missing"):
        LockSet.of([A]).verify(Catalog.from_records([gone]))


def test_other_choice_is_a_mismatch() -> None:
    with pytest.raises(PluginMismatch, match=r"plugin-b:table 2\.0: chosen here only"):
        LockSet.of([A]).check_same(LOCK)
    with pytest.raises(PluginMismatch, match=r"plugin-b:table 2\.0: not chosen here"):
        LOCK.check_same(LockSet.of([A]))
