"""Which type the KV cache gets: the operator's, the checkpoint's, or the one that is computed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from registry_fakes import attention, quant, record, records, settings, swap, write_checkpoint

from core.interfaces.errors import ConfigError, PluginLoadError
from core.registry.resolution import Resolution
from core.registry.resolve import resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "ckpt")


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "quantized", quantization_config={"quant_method": "small"})


def reason(resolution: Resolution) -> str:
    return next(d.reason for d in resolution.decisions if d.name == "KV cache dtype")


def wishing(wish: Any) -> Any:
    """A quantization method that asks for a type of cache."""

    class Small(quant("small")):  # type: ignore[misc]
        def kv_cache_dtype(self) -> str | None:
            if isinstance(wish, Exception):
                raise wish
            return wish  # type: ignore[no-any-return]

    return record("quant", "small", Small, capabilities={"formats": ["small"]})


EIGHT_BITS = record("attention", "small", attention(kv_dtypes=("auto", "fp8_e4m3")))


def test_nobody_asks(folder: Path) -> None:
    resolution = resolve(settings(folder), swap(records(), EIGHT_BITS))
    assert resolution.kv_cache_dtype == resolution.effective["kv_cache_dtype"] == "bfloat16"
    assert reason(resolution) == "the compute type"


@pytest.mark.parametrize("asked", ["fp8", "fp8_e4m3"])
def test_the_operator_asks(folder: Path, asked: str) -> None:
    resolution = resolve(settings(folder, kv_cache_dtype=asked), swap(records(), EIGHT_BITS))
    assert (resolution.kv_cache_dtype, reason(resolution)) == ("fp8_e4m3", "asked for")
    assert [choice.name for choice in resolution.attention] == ["small"]
    assert "keeps no cache of fp8_e4m3" in dict(resolution.attention[0].rejected).get(
        "plain", "keeps no cache of fp8_e4m3"
    )


def test_the_compute_type_needs_nothing_of_a_backend(folder: Path) -> None:
    assert resolve(settings(folder, kv_cache_dtype="bfloat16"), swap(records())).kv_cache_dtype == "bfloat16"
    with pytest.raises(ConfigError, match="keeps no cache of bfloat16"):
        resolve(settings(folder, kv_cache_dtype="bfloat16", dtype="float32"), swap(records()))


def test_a_backend_that_lacks_it_stops_the_start(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"with a cache of fp8_e5m2 .*small: keeps no cache of fp8_e5m2 \(it keeps fp8_e4m3\)"
    ) as error:
        resolve(settings(folder, kv_cache_dtype="fp8_e5m2"), swap(records(), EIGHT_BITS))
    assert "--kv-cache-dtype" in (error.value.hint or "")
    with pytest.raises(ConfigError, match=r"attention_backend is 'plain'.*it keeps the compute type alone"):
        resolve(settings(folder, kv_cache_dtype="fp8", attention_backend="plain"), swap(records()))


def test_the_manifest_alone_can_rule_a_backend_out(folder: Path) -> None:
    stated = record(
        "attention", "plain", attention(kv_dtypes=("auto", "fp8_e4m3")), capabilities={"kv_dtypes": ["auto"]}
    )
    with pytest.raises(ConfigError, match="keeps no cache of fp8_e4m3"):
        resolve(settings(folder, kv_cache_dtype="fp8"), swap(records(), stated))


@pytest.mark.parametrize("wish", ["fp8", "fp8_e4m3"])
def test_the_checkpoint_asks(quantized: Path, wish: str) -> None:
    resolution = resolve(settings(quantized), swap(records(), EIGHT_BITS, wishing(wish)))
    assert (resolution.kv_cache_dtype, reason(resolution)) == ("fp8_e4m3", "the checkpoint asks for it")


def test_the_operator_goes_before_the_checkpoint(quantized: Path) -> None:
    catalog = swap(records(), EIGHT_BITS, wishing("fp8"))
    resolution = resolve(settings(quantized, kv_cache_dtype="bfloat16"), catalog)
    assert (resolution.kv_cache_dtype, reason(resolution)) == ("bfloat16", "asked for")


def test_what_a_checkpoint_asks_for_in_vain_is_said(quantized: Path) -> None:
    resolution = resolve(settings(quantized), swap(records(), wishing("fp8")))
    assert resolution.kv_cache_dtype == "bfloat16"
    assert "the checkpoint asks for fp8_e4m3" in reason(resolution)
    assert "keeps no cache of fp8_e4m3" in reason(resolution)
    resolution = resolve(settings(quantized), swap(records(), EIGHT_BITS, wishing("int3")))
    assert "int3, which core does not know" in reason(resolution)


def test_a_method_that_asks_for_nothing(quantized: Path) -> None:
    assert resolve(settings(quantized), swap(records(), EIGHT_BITS, wishing(None))).kv_cache_dtype == "bfloat16"


def test_a_method_that_fails_is_named(quantized: Path) -> None:
    with pytest.raises(PluginLoadError, match=r"small.*RuntimeError: no idea"):
        resolve(settings(quantized), swap(records(), wishing(RuntimeError("no idea"))))
