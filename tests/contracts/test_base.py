"""What every suite shares: how the plugin is found, which device is taken, and what the pytest plugin tells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, ConfigDict

from core.interfaces.errors import ConfigError, PluginApiError, PluginNotFound
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.testing.contracts.base import Contract, relative_error
from core.testing.contracts.host_reads import NoHostReads
from core.testing.dense_attention import DenseAttention

pytest_plugins = ["pytester"]


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    level: int = 1


class _Attention(Contract):
    kind = "attention"


def made(**changes: object) -> type[_Attention]:
    return type("Made", (_Attention,), changes)


def catalog(**changes: object) -> Catalog:
    record = PluginRecord("attention", "mine", "plugin-mine", loaded=DenseAttention, **changes)  # type: ignore[arg-type]
    return Catalog.from_records([record])


def with_catalog(found: Catalog, **changes: object) -> type[_Attention]:
    return made(name="mine", catalog=classmethod(lambda cls: found), **changes)


def test_a_plugin_is_found_by_name_and_by_full_name() -> None:
    for name in ("torch_native", "core:torch_native"):
        contract = made(name=name)()
        assert contract.record().distribution == "core"
        contract.test_plugin_is_found_and_loaded_as_core_does()


def test_errors_are_cores_own() -> None:
    with pytest.raises(PluginNotFound, match="torch_nativ"):
        made(name="torch_nativ").plugin()
    with pytest.raises(PluginApiError, match="too old"):
        with_catalog(catalog(api_mismatch="it is too old")).plugin()
    with pytest.raises(AssertionError, match="name is empty"):
        made().record()


def test_an_implementation_needs_no_entry_point() -> None:
    contract = made(implementation=DenseAttention)()
    assert contract.plugin() is DenseAttention
    contract.test_plugin_is_found_and_loaded_as_core_does()
    assert contract.device().type in ("cpu", "cuda", "mps", "xpu")


def test_an_implementation_that_is_not_finished_is_told() -> None:
    from core.interfaces.attention import AttentionBackend

    with pytest.raises(AssertionError, match="allocate"):
        made(implementation=AttentionBackend)().test_plugin_is_found_and_loaded_as_core_does()


def test_settings_are_validated_by_the_plugins_model() -> None:
    found = catalog(config=f"{__name__}:Options")
    assert with_catalog(found, settings={"level": 3})().context().settings.level == 3
    assert with_catalog(found, settings={"level": 3})().context(settings={"level": 4}).settings.level == 4
    with pytest.raises(ConfigError, match="depth"):
        with_catalog(found, settings={"depth": 3})().context()


def test_the_device_is_one_that_the_plugin_runs_on() -> None:
    assert made(name="cpu_native")().hardware() == "cpu"
    with pytest.raises(pytest.skip.Exception, match="not claimed: any device"):
        with_catalog(catalog(requires_hardware=("chip_of_tomorrow",)))().hardware()
    asked = with_catalog(catalog(requires_hardware=("chip_of_tomorrow",)), _device_asked="cpu")
    with pytest.raises(pytest.skip.Exception, match="not claimed: device cpu"):
        asked().hardware()
    with pytest.raises(pytest.fail.Exception, match="not available here"):
        made(name="torch_native", _device_asked="chip_of_tomorrow")().hardware()


def test_require_says_what_is_not_claimed() -> None:
    contract = made()()
    contract.require(True, "softcap")
    with pytest.raises(pytest.skip.Exception, match=r"^not claimed: softcap$"):
        contract.require(False, "softcap")


def test_random_values_are_the_same_each_time_and_in_each_dtype() -> None:
    contract = made(name="torch_native")()
    first, again = (contract.random(3, 4, dtype=torch.float32, seed=5) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(contract.random(3, 4, dtype=torch.bfloat16, seed=5), first.bfloat16())
    assert not torch.equal(contract.random(3, 4, dtype=torch.float32, seed=6), first)


def test_relative_error_is_of_the_worst_row() -> None:
    want = torch.ones(4, 9, dtype=torch.float64)
    got = want.clone()
    got[2] *= 1.01
    assert relative_error(got, want) == pytest.approx(0.01)
    assert relative_error(got[None], want[None]) < 0.01
    got[0, 0] = float("nan")
    assert relative_error(got, want) == float("inf")
    # A row that happens to be small is measured by the others; one whose terms cancel out by what is given.
    small = want.clone()
    small[0] = 1e-9
    assert relative_error(small + 1e-3, small) < 0.02
    zero = torch.zeros(1, 4, dtype=torch.float64)
    assert relative_error(zero + 1e-6, zero, torch.tensor([1.0])) < 1e-5


def test_close_means_within_the_tolerance_of_the_dtype() -> None:
    contract = made(tolerance={"float32": 0.1})()
    want = torch.ones(2, 2, dtype=torch.float64)
    contract.assert_close(want * 1.05, want, torch.float32)
    contract.assert_close(want * 1.15, want, torch.float32, extra=0.1)
    contract.assert_close(want[:0], want[:0], torch.float32)
    with pytest.raises(AssertionError, match="off by"):
        contract.assert_close(want * 1.2, want, torch.float32)
    with pytest.raises(AssertionError, match="shape"):
        contract.assert_close(want[:1], want, torch.float32)
    assert contract.tolerance_of("bfloat16") > contract.tolerance_of("float64")


def test_examples_grow_with_the_option() -> None:
    from hypothesis import strategies as st

    for factor, number in ((0.5, 10), (2.0, 40)):
        seen: list[int] = []
        made(_example_factor=factor)().for_all(st.integers(0, 10**9), seen.append, examples=20)
        assert number / 2 <= len(seen) <= number * 2


def test_reading_a_value_on_the_host_is_seen() -> None:
    x = torch.arange(4.0)
    with NoHostReads():
        (x + 1).cumsum(0)
        x[torch.tensor([1, 2])]
    for read in (lambda: x.max().item(), lambda: x.nonzero(), lambda: x[x > 1], lambda: bool(x.sum())):
        with NoHostReads(), pytest.raises(AssertionError, match="waits for"):
            read()
        with NoHostReads(torch.device("cpu")), pytest.raises(AssertionError, match="waits for"):
            read()
        with NoHostReads(torch.device("meta")):  # beside another device, the host's tensors are free to look at
            read()


_SUITE = """
from core.testing.contracts.base import Contract

class TestMine(Contract):
    kind = "attention"
    name = "torch_native"

    def test_a(self):
        self.require(False, "softcap")

    def test_b(self):
        assert True

    def test_c(self):
        assert self.name == "", "no"

    def test_d(self):
        import pytest
        pytest.skip("just so")

def test_of_nobodys_contract():
    import pytest
    pytest.skip("not listed")
"""


def test_what_was_skipped_is_listed_and_reported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_mine=_SUITE)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--contract-report=out.json")
    result.stdout.fnmatch_lines([
        "*contracts: what was not tested*", "test_mine.py::TestMine (attention:torch_native)",
        "  not claimed: softcap: test_a", "  test_d: just so",
    ])  # fmt: skip
    result.stdout.no_fnmatch_line("*test_of_nobodys_contract: not listed*")
    report = json.loads((pytester.path / "out.json").read_text())
    assert report == {
        "test_mine.py::TestMine": {
            "plugin": "attention:torch_native",
            "passed": 2,
            "failed": ["test_c"],
            "skipped": {"test_d": "just so"},
            "not_claimed": {"softcap": ["test_a"]},
        }
    }


def test_nothing_is_said_where_there_is_no_contract(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): assert True")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").stdout.no_fnmatch_line("*contracts:*")


def test_the_pytest_plugin_is_light(tmp_path: Path) -> None:
    """It is loaded in every run of pytest where core is installed."""
    code = (
        "import sys, core.testing.pytest_plugin; "
        "print([m for m in ('torch', 'hypothesis', 'numpy', 'pydantic', 'core.registry') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stdout
