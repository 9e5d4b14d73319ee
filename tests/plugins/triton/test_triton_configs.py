"""The files of configurations, the rule for shapes that they lack, and the tuner's command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plugin_triton.ops import tune
from plugin_triton.ops.configs import FOLDER, LIBRARY, ROWS, Config, choose, read, shape_name, write

CPU = torch.device("cpu")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_files_hold_what_the_kernels_take(path: Path) -> None:
    products = read(path)
    assert products
    for shape, by_rows in products.items():
        n, k, gated = tune.parse_shape(shape)
        assert shape == shape_name(n, k, gated)
        for rows, config in by_rows.items():
            assert rows in ROWS
            assert config.kind in ("gemv", "skinny", "library")
            assert config.kind != "gemv" or rows == 1
            sizes = (config.block_n, config.block_k, config.num_warps)
            assert config == LIBRARY or all(size > 0 and size & (size - 1) == 0 for size in sizes)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    products = {
        "64x32": {1: Config("gemv", 2, 32, 1), 16: Config("skinny", 16, 32, 1, 2, 3, 1)},
        "8x32 gated": {1: LIBRARY},
    }
    write(tmp_path / "some.json", products, "a note")
    assert read(tmp_path / "some.json") == products


@pytest.mark.parametrize(("n", "k"), [(128, 2048), (6144, 4096), (37, 304), (1, 8), (4096, 14336), (2880, 2880)])
def test_other_shapes_have_a_rule(n: int, k: int) -> None:
    config = choose(CPU, n, k, False, 1)
    assert config.kind == "gemv"
    assert config.block_k < 2 * k
    assert config.block_n * config.block_k // (32 * config.num_warps) <= 128, "more than a thread's registers hold"
    assert all(choose(CPU, n, k, False, rows) == LIBRARY for rows in ROWS[1:])


@pytest.mark.parametrize("shape", ["4096", "0x4096", "axb", "64x64 silu", "64x-1"])
def test_the_tuner_names_a_wrong_shape(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tune.main([shape])
    assert f"{shape!r} is no shape" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_tuner_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tune.main(["64x64"])
    assert "no GPU is found" in capsys.readouterr().err


def test_candidates_fit_their_shape() -> None:
    for rows in ROWS:
        for k, gated in ((2048, False), (4096, True), (128, False)):
            found = list(tune.candidates(rows, k, gated))
            assert found[0] == LIBRARY
            assert all(config.block_k * config.split_k <= 2 * k for config in found)
            assert rows == 1 or all(config.kind != "gemv" for config in found)
