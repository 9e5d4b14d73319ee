"""Tables of tiles and weights of other layouts: what is read, what is refused, and how."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.interfaces.errors import ConfigError
from core.interfaces.moe import ExpertWeights
from plugin_triton.moe import fp8
from plugin_triton.moe.configs import (
    TABLES,
    Configs,
    MoeConfig,
    Shape,
    Tile,
    fallback,
    folder_name,
    read_table,
    write_table,
)
from plugin_triton.moe.tune import blocks_for, candidates

QWEN = Shape(128, 8, 2048, 768, "bfloat16")
CONFIG = MoeConfig(16, Tile(32, 64, swap=True), Tile(64, 64, 8, 4, tma=True))
BUNDLED = sorted(TABLES.glob("*/*.json"))


@pytest.mark.parametrize("path", BUNDLED, ids=[path.stem for path in BUNDLED])
def test_bundled_tables(path: Path) -> None:
    data = json.loads(path.read_text())
    shape = Shape(*(data[name] for name in ("experts", "top_k", "hidden", "intermediate", "weights")))
    assert path.name == shape.file_name
    assert path.parent.name == folder_name(data["device"])
    assert {"triton", "torch"} <= set(data["versions"])
    table = read_table(path)
    assert all(entry["us"] > 0 for entry in data["tokens"].values())
    for tokens, config in table.items():
        assert Configs(data["device"], True).pick(shape, tokens).config == config


def test_the_nearest_entry_serves_by_ratio(tmp_path: Path) -> None:
    path = tmp_path / "A_GPU" / QWEN.file_name
    found = [(tokens, replace(CONFIG, block_m=block_m), {}) for tokens, block_m in ((1, 1), (16, 16), (256, 64))]
    write_table(path, "A GPU", QWEN, found, {})
    configs = Configs("A GPU", True, tmp_path)
    served = {tokens: configs.pick(QWEN, tokens) for tokens in (1, 3, 5, 63, 65, 9999)}
    assert {tokens: one.tuned_for for tokens, one in served.items()} == {1: 1, 3: 1, 5: 16, 63: 16, 65: 256, 9999: 256}
    assert served[63].config == replace(CONFIG, block_m=16)
    assert str(path) in served[1].source


def test_the_operator_s_folder_wins_and_other_shapes_fall_back(tmp_path: Path) -> None:
    device = json.loads((TABLES / "NVIDIA_H200" / QWEN.file_name).read_text())["device"]
    write_table(tmp_path / folder_name(device) / QWEN.file_name, device, QWEN, [(7, CONFIG, {})], {})
    assert Configs(device, True, tmp_path).pick(QWEN, 100).config == CONFIG
    assert Configs(device, True).pick(QWEN, 7).config != CONFIG
    other = replace(QWEN, intermediate=384)
    served = Configs(device, True, tmp_path).pick(other, 100)
    assert served.tuned_for is None
    assert served.config == fallback(other, 100, True)
    assert "--intermediate 384" in served.source


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"block_m": 24}, "block_m is 24"),
        ({"block_m": "16"}, "block_m is '16'"),
        ({"down": {"block_n": 48, "block_k": 64}}, "block_n is 48, not a power of two"),
        ({"down": {"block_n": 64, "block_k": 0}}, "block_k is 0"),
        ({"down": {"block_n": 64, "block_k": 64, "colour": 1}}, "unknown keys colour"),
        ({"down": {"block_n": 64}}, "block_k"),
        ({"gate_up": None}, "NoneType"),
    ],
)
def test_a_wrong_table_is_refused_by_name(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    tile = {"block_n": 64, "block_k": 64}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"tokens": {"4": {"block_m": 16, "gate_up": tile, "down": tile, **change}}}))
    with pytest.raises(ConfigError, match=why) as caught:
        read_table(path)
    assert caught.value.value == str(path)
    assert "core tune-moe" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["", "[]", '{"tokens": 3}', '{"tokens": {"x": {}}}', "{}"])
def test_a_file_that_is_no_table(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not a table of expert tiles"):
        read_table(path)


def test_weights_must_lie_as_their_format_says() -> None:
    plain = ExpertWeights(torch.randn(2, 12, 8), torch.randn(2, 8, 6))
    fp8.check(plain)
    for format_ in (fp8.TENSOR, fp8.CHANNEL, fp8.BLOCK):
        good = fp8.pack(plain, format_)
        fp8.check(good)
        for name, scale in good.scales.items():
            for wrong in (scale.double(), scale[:1].clone()):
                with pytest.raises(ConfigError, match=rf"scales\['{name}'\] is torch"):
                    fp8.check(replace(good, scales={**good.scales, name: wrong}))
            with pytest.raises(ConfigError, match=f"scales has no '{name}'"):
                fp8.check(replace(good, scales={other: s for other, s in good.scales.items() if other != name}))
        with pytest.raises(ConfigError, match=r"gate_up is torch.float32; down is torch.float32"):
            fp8.check(replace(plain, format=format_, scales=good.scales))
    with pytest.raises(ConfigError, match=r"down is torch.float8_e4m3fn"):
        fp8.check(replace(plain, down=fp8.pack(plain, fp8.TENSOR).down))
    with pytest.raises(ConfigError, match=r"none of plain, fp8_tensor, fp8_channel, fp8_block128") as caught:
        fp8.check(replace(plain, format="int3"))
    assert caught.value.field == "model.quantization"


def test_unpack_is_what_pack_stored() -> None:
    plain = ExpertWeights(torch.randn(2, 2 * 150, 200), torch.randn(2, 200, 150))
    for format_ in (fp8.TENSOR, fp8.CHANNEL, fp8.BLOCK):
        back = fp8.unpack(fp8.pack(plain, format_))
        for got, want in ((back.gate_up, plain.gate_up), (back.down, plain.down)):
            # 3 bits behind the point: at most 1/16 off, and half a step of the smallest numbers.
            assert ((got - want).abs() <= want.abs() / 16 + 0.02).all()


def test_candidates_and_blocks() -> None:
    assert blocks_for(QWEN, 1) == [1]
    assert blocks_for(QWEN, 64) == [16]
    assert 128 in blocks_for(QWEN, 8192)
    for weights in ("bfloat16", "fp8_tensor", "fp8_block128"):
        for block_m in (1, 16, 32, 64, 128):
            for kernel in (0, 1):
                tiles = candidates(block_m, kernel, weights)
                assert tiles
                assert len(tiles) == len(set(tiles))
                if weights == "fp8_block128" and block_m > 1:
                    assert {tile.block_k for tile in tiles} == {128}
