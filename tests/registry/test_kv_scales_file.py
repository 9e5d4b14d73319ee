"""The operator's file of scales of cached keys and values: what it may say, and that its mistakes are named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import attention, quant, record, records, settings, swap, write_checkpoint

from core.interfaces.errors import ConfigError
from core.interfaces.spec import AttentionSpec, LayerSpec, ModelSpec
from core.registry.kv_scales_file import FIELD, read_kv_scales
from core.registry.resolution import Resolution
from core.registry.resolve import resolve

RULE = LayerSpec(AttentionSpec(4, 2, 16, 1.0))
SPEC = ModelSpec("A", 8, 8, (RULE, LayerSpec(None), RULE), (), 8)
EIGHT_BITS = record("attention", "small", attention(kv_dtypes=("auto", "fp8_e4m3")))


def content(ranks: Any, **changes: Any) -> dict[str, Any]:
    return {"model_type": "llama", "kv_cache": {"dtype": "float8_e4m3fn", "scaling_factor": ranks}, **changes}


def write(folder: Path, data: Any) -> str:
    path = folder / "scales.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def test_a_file_of_one_rank_serves_any_number(tmp_path: Path) -> None:
    path = write(tmp_path, content({"0": {"0": 0.5, "2": 3}}))
    assert read_kv_scales(path, SPEC, "llama", 1) == ({0: (0.5, 0.5), 2: (3.0, 3.0)},)
    assert read_kv_scales(path, SPEC, "llama", 4) == ({0: (0.5, 0.5), 2: (3.0, 3.0)},) * 4
    assert len(read_kv_scales(path, SPEC, None, 2)) == 2


def test_a_map_for_each_rank(tmp_path: Path) -> None:
    ranks = {"1": {"0": 1.5, "2": 1.5}, "0": {"0": 0.5, "2": 0.5}}
    path = write(tmp_path, content(ranks, model_type=None))
    assert read_kv_scales(path, SPEC, "llama", 2) == ({0: (0.5, 0.5), 2: (0.5, 0.5)}, {0: (1.5, 1.5), 2: (1.5, 1.5)})
    with pytest.raises(ConfigError, match="is for 2 ranks, and tensor_parallel_size is 4") as caught:
        read_kv_scales(path, SPEC, "llama", 4)
    assert "--tensor-parallel-size 2" in str(caught.value.hint)


LAYERS = {"0": 0.5, "2": 0.5}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "it is not JSON"),
        ("[]", "it holds a list"),
        ({}, '"kv_cache" is None'),
        (content({"0": LAYERS}, model_type="qwen3"), "\"model_type\" is 'qwen3'"),
        (
            content({"0": LAYERS}) | {"kv_cache": {"dtype": "int8", "scaling_factor": {"0": LAYERS}}},
            "dtype\" is 'int8'",
        ),
        (content(None), '"kv_cache.scaling_factor" is None'),
        (content({}), '"kv_cache.scaling_factor" is {}'),
        (content({"1": LAYERS}), "has ranks 1"),
        (content({"0": [0.5]}), "scaling_factor.0"),
        (content({"0": {"0": 0.5}}), "lacks layers 2"),
        (content({"0": {**LAYERS, "1": 0.5}}), "has layers 1, which cache nothing"),
        (content({"0": {**LAYERS, "x": 0.5}}), "has layers x"),
        (content({"0": {**LAYERS, "2": 0}}), "layer 2 is 0"),
        (content({"0": {**LAYERS, "2": -1.0}}), "layer 2 is -1.0"),
        (content({"0": {**LAYERS, "2": float("nan")}}), "layer 2 is nan"),
        (content({"0": {**LAYERS, "2": True}}), "layer 2 is True"),
        (content({"0": {**LAYERS, "2": "0.5"}}), "layer 2 is '0.5'"),
    ],
)
def test_mistakes_are_named_with_the_way_out(tmp_path: Path, data: Any, says: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(ConfigError) as caught:
        read_kv_scales(path, SPEC, "llama", 1)
    assert says in caught.value.message
    assert path in caught.value.message
    assert caught.value.field == FIELD
    assert caught.value.hint


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_kv_scales(str(tmp_path / "none.json"), SPEC, "llama", 1)


# In a resolution


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "ckpt")


@pytest.fixture
def file(tmp_path: Path, folder: Path) -> str:
    spec = resolve(settings(folder), swap(records())).spec
    layers = {str(i): 0.25 for i, layer in enumerate(spec.layers) if layer.attention is not None}
    assert layers
    return write(tmp_path, content({"0": layers}, model_type="x_y"))


def lines(resolution: Resolution) -> dict[str, tuple[str, str]]:
    return {d.name: (d.value, d.reason) for d in resolution.decisions}


@pytest.mark.parametrize("name", ["kv_scales_file", "quantization_param_path"])
def test_it_is_for_a_cache_of_eight_bits(folder: Path, file: str, name: str) -> None:
    resolution = resolve(settings(folder, kv_cache_dtype="fp8", **{name: file}), swap(records(), EIGHT_BITS))
    assert set(resolution.kv_scales[0].values()) == {(0.25, 0.25)}
    assert lines(resolution)["KV cache scales"] == (file, "asked for")
    assert not resolution.warnings


def test_without_such_a_cache_it_has_no_effect_and_that_is_said(
    folder: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        resolution = resolve(settings(folder, kv_scales_file=file), swap(records(), EIGHT_BITS))
    assert resolution.kv_scales == ()
    assert "KV cache scales" not in lines(resolution)
    assert "kv_scales_file has no effect" in caplog.text
    Path(file).write_text("{}")
    with pytest.raises(ConfigError, match="kv_cache"):
        resolve(settings(folder, kv_scales_file=file), swap(records(), EIGHT_BITS))


def test_where_scales_come_from_is_explained(tmp_path: Path) -> None:
    class Scaled(quant("small")):  # type: ignore[misc]
        def kv_scales(self) -> dict[str, str]:
            return {"x": "k"}

    catalog = swap(records(), EIGHT_BITS, record("quant", "small", Scaled, capabilities={"formats": ["small"]}))
    quantized = write_checkpoint(tmp_path / "quantized", quantization_config={"quant_method": "small"})
    value, _ = lines(resolve(settings(quantized, kv_cache_dtype="fp8"), catalog))["KV cache scales"]
    assert value == "the checkpoint's"
    plain = write_checkpoint(tmp_path / "plain")
    value, reason = lines(resolve(settings(plain, kv_cache_dtype="fp8"), catalog))["KV cache scales"]
    assert value == "none"
    assert "--kv-scales-file" in reason
    assert "KV cache scales" not in lines(resolve(settings(plain), catalog))
