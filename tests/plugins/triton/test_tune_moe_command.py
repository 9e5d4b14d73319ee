"""`core tune-moe`: the contract of commands, and what it says where it cannot work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from core.testing.contracts.commands import CommandsContract
from plugin_triton.moe import tune as tuner
from plugin_triton.moe.command import app
from plugin_triton.moe.configs import Configs, MoeConfig, Shape, Tile

SHAPE = ["--experts", "4", "--top-k", "2", "--hidden", "64", "--intermediate", "32"]


class TestTuneMoeCommand(CommandsContract):
    name = "tune-moe"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--weights", "int3"], "'int3' is none of"),
        (["--top-k", "5"], "5 of 4 experts"),
        (["--tokens", "1,x"], "'1,x' are not whole numbers"),
        (["--tokens", "0"], "'0' are not whole numbers"),
    ],
)
def test_wrong_options(options: list[str], why: str) -> None:
    done = CliRunner().invoke(app, [*SHAPE, *options], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert why in done.output


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(app, SHAPE)
    assert done.exit_code == 1
    assert "no GPU" in done.output


def test_writes_what_the_runner_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With measuring faked: of each number of tokens the fastest configuration."""
    tile = Tile(32, 32)

    class Bench:
        def __init__(self, *args: Any, **options: Any) -> None:
            assert args[0] == Shape(4, 2, 64, 32, "fp8_channel")
            assert options["dtype"] == torch.bfloat16

    def tune(bench: Bench, tokens: int, tell: Any) -> list[tuple[MoeConfig, tuner.Timed]]:
        tell("a line")
        return [(MoeConfig(block_m, tile, tile), tuner.Timed(us, 1.0, 2.0)) for block_m, us in ((1, 9.0), (16, 5.04))]

    for name, value in (("Bench", Bench), ("tune", tune), ("compile_all", lambda *args: None)):
        monkeypatch.setattr(tuner, name, value)
    for name, value in (("is_available", True), ("current_device", 0), ("get_device_name", "Some GPU")):
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    options = ["--weights", "fp8_channel", "--tokens", "8,1", "--folder", str(tmp_path)]
    done = CliRunner().invoke(app, [*SHAPE, *options])
    assert done.exit_code == 0, done.output
    assert "a line" not in done.output
    served = Configs("Some GPU", True, tmp_path).pick(Shape(4, 2, 64, 32, "fp8_channel"), 8)
    assert served.config == MoeConfig(16, tile, tile)
    data = json.loads(next(tmp_path.glob("*/*.json")).read_text())
    assert data["tokens"]["1"]["us"] == 5.0
    monkeypatch.setattr(tuner, "tune", lambda *args: [])
    done = CliRunner().invoke(app, [*SHAPE, *options])
    assert done.exit_code == 1
    assert "no tile fits" in done.output
