"""Finding, loading and calling the libraries: signatures of published builds, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import fa3_schemas
import pytest
import torch
from fake_fa3 import CALLS, FakeSglang, FakeUpstream, FakeVllm

from core.interfaces.errors import ConfigError
from plugin_fa3.providers import choose as choosing
from plugin_fa3.providers.base import Provider, Rows, Rule
from plugin_fa3.providers.binding import Binding, UnknownSignature
from plugin_fa3.providers.choose import PROVIDERS, choose, how_to_install, installed
from plugin_fa3.providers.flash_attn import FlashAttnProvider
from plugin_fa3.providers.sglang import SglangProvider
from plugin_fa3.providers.vllm import VllmProvider

FILES = {
    SglangProvider: "sgl_kernel/flash_ops.abi3.so",
    VllmProvider: "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",
    FlashAttnProvider: "flash_attn_3/_C.abi3.so",
}


def _site(folder: Path, *providers: type[Provider], content: bytes = b"no library") -> Path:
    for provider in providers:
        path = folder / FILES[provider]
        path.parent.mkdir(parents=True)
        (folder / provider.package / "__init__.py").write_text("raise AssertionError('must not be imported')")
        path.write_bytes(content)
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for packages; those of this machine, if it has any, are out of sight."""
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_library_is_found_without_importing_its_package(site: Path, provider: type[Provider]) -> None:
    assert provider.library() is None
    _site(site, provider)
    assert provider.library() == site / FILES[provider]
    assert installed() == [provider]


def test_nothing_installed_says_what_to_install(site: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"fa3.provider is 'auto'.*pip install sglang-kernel \(or vllm or flash_attn_3\)"
    ):
        choose("auto", sinks=False)
    with pytest.raises(ConfigError, match=r"'vllm'.*vllm is not installed \(pip install vllm\)") as caught:
        choose("vllm", sinks=False)
    assert caught.value.field == "fa3.provider"
    assert caught.value.value == "vllm"
    assert caught.value.hint is not None
    assert "sglang-kernel" in how_to_install()


def test_a_library_of_another_build_is_named_with_its_cause(site: Path) -> None:
    _site(site, SglangProvider, VllmProvider)
    with pytest.raises(ConfigError) as caught:
        choose("auto", sinks=False)
    text = str(caught.value)
    assert (
        f"sglang: {site / FILES[SglangProvider]} of sglang-kernel cannot be loaded with torch {torch.__version__}"
        in text
    )
    assert "vllm: " in text


def test_the_first_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeSglang):
        def _load(self) -> None:
            raise UnknownSignature("x::fwd takes an argument colour that this plugin does not know")

    for fake in (Broken, FakeUpstream, FakeVllm):
        monkeypatch.setattr(fake, "library", classmethod(lambda cls: Path("/there")))
    monkeypatch.setattr(choosing, "PROVIDERS", (Broken, FakeUpstream, FakeVllm))
    assert choose("auto", sinks=False).name == "flash_attn"
    assert choose("auto", sinks=True).name == "vllm"  # upstream's has none
    assert choose("vllm", sinks=False).name == "vllm"
    with pytest.raises(ConfigError, match="argument colour"):
        choose("sglang", sinks=False)
    with pytest.raises(ConfigError, match="no attention sinks"):
        choose("flash_attn", sinks=True)


def test_arguments_are_found_by_name_whatever_their_order() -> None:
    schema = torch._C.parse_schema(
        "x::f(int num_splits, Tensor q, Tensor? rotary_cos, int sm_margin, int other=5) -> ()"
    )
    seen: list[tuple[object, ...]] = []
    call = Binding(lambda *args: seen.append(args), schema, ("q", "num_splits"))
    call(q="Q", num_splits=3)
    call(num_splits=4, q="R")
    assert seen == [(3, "Q", None, 0, 5), (4, "R", None, 0, 5)]


def test_an_argument_that_nobody_knows_makes_a_build_unusable() -> None:
    schema = torch._C.parse_schema("x::f(Tensor q, bool new_trick) -> ()")
    with pytest.raises(UnknownSignature, match="x::f takes an argument new_trick"):
        Binding(print, schema, ("q",))
    with pytest.raises(UnknownSignature, match="x::f takes no num_splits, sinks"):
        Binding(print, schema, ("q", "num_splits", "sinks"))


@pytest.mark.parametrize("fake", [FakeSglang, FakeVllm, FakeUpstream])
def test_every_published_signature_is_served(fake: type[Provider]) -> None:
    """A call through each gives attention's result, and switches off what we do not use."""
    provider = fake()
    q, k, v = (torch.randn(5, heads, 64).bfloat16() for heads in (4, 2, 2))
    out = torch.empty(5, 4, 64, dtype=torch.bfloat16)
    rows = Rows(torch.tensor([0, 5], dtype=torch.int32), 5, 5)
    CALLS.clear()
    provider.attend(q, k, v, out, rows, Rule(0.125, window=3))
    mask = torch.ones(5, 5).tril().triu(-2).bool()
    heads = (x.float().transpose(0, 1) for x in (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)))
    want = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=0.125).transpose(0, 1)
    assert torch.allclose(out.float(), want, atol=0.02)
    (call,) = CALLS
    assert call.values["window_size_left"] == 2
    off = {"attention_chunk": 0, "only_qv": False, "cp_world_size": 1, "cp_rank": 0, "sm_margin": 0}
    assert all(call.values[name] == value for name, value in off.items() if name in call.values)


def test_recorded_signatures_are_whole() -> None:
    """Guards the data: torch parses each, and the builds differ where the adapters say so."""
    names = {
        name: [a.name for a in torch._C.parse_schema(f"x::{schemas['fwd']}").arguments]
        for name, schemas in vars(fa3_schemas).items()
        if isinstance(schemas, dict) and "fwd" in schemas
    }
    assert {name: len(arguments) for name, arguments in names.items()} == {"SGLANG": 37, "VLLM": 37, "UPSTREAM": 34}
    assert SglangProvider.sinks_argument in names["SGLANG"]
    assert VllmProvider.sinks_argument in names["VLLM"]
    assert FlashAttnProvider.sinks_argument is None
