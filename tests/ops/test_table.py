from __future__ import annotations

from typing import Any

import pytest

from core.interfaces.errors import PluginError
from core.ops.reference import REFERENCES
from core.ops.table import build_ops


def other(*args: Any) -> Any:
    return args


def test_without_tables_it_is_the_references() -> None:
    assert dict(build_ops()) == dict(REFERENCES)


def test_later_tables_win() -> None:
    first, second = (lambda x: 1), (lambda x: 2)
    table = build_ops({"silu_and_mul": first, "rms_norm": other}, {"silu_and_mul": second})
    assert table["silu_and_mul"] is second
    assert table["rms_norm"] is other
    assert table["rope"] is REFERENCES["rope"]


def test_the_table_is_read_only() -> None:
    with pytest.raises(TypeError):
        build_ops()["rope"] = other  # type: ignore[index]


def test_an_unknown_name_is_an_error_that_names_it() -> None:
    with pytest.raises(PluginError, match=r"'rms_nrom'") as caught:
        build_ops({"rms_nrom": other})
    assert "'rms_norm'" in str(caught.value.hint)


def test_something_not_callable_is_an_error() -> None:
    with pytest.raises(PluginError, match="not callable"):
        build_ops({"rope": 3})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["linear", "pack_linear_weight"])
def test_linear_and_its_packing_come_together(name: str) -> None:
    with pytest.raises(PluginError, match="without"):
        build_ops({name: other})


def test_a_fused_product_reads_what_its_own_table_packs() -> None:
    """So without a packing of its own it is an error, and a later table's packing puts an earlier one's out of use."""
    with pytest.raises(PluginError, match="'fused_linear' without 'pack_linear_weight'"):
        build_ops({"fused_linear": other})
    whole = {"linear": other, "pack_linear_weight": other, "fused_linear": other}
    assert build_ops(whole)["fused_linear"] is other
    packing = {"linear": other, "pack_linear_weight": other}
    assert build_ops(whole, packing)["fused_linear"] is REFERENCES["fused_linear"]
