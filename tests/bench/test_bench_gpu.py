"""The comparison beside peers: recorded figures, ratios, the drivers' way of measuring; core itself by its command."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from bench.gpu import __main__ as comparison
from bench.gpu.drivers import measure

TINY = str(comparison.SHAPES / "tiny")


def test_recorded_figures_say_where_they_are_from() -> None:
    rows = comparison.recorded("llama-3.1-8b")
    assert len(rows) == 2
    assert all("recorded 2026-11-21, other run" in name for name in rows)
    assert comparison.recorded("tiny") == {}
    for case in json.loads(comparison.RECORDED.read_text())["figures"]:
        assert case in comparison.CASES
        assert set(comparison.recorded(case).popitem()[1]["figures"]) <= set(comparison.COLUMNS)


def test_ratios_are_above_one_where_core_is_better() -> None:
    engines = {
        "core": {"figures": {"W1": 4.0, "W2": 150.0}},
        "a": {"figures": {"W1": 5.0, "W2": 100.0, "W3": 7.0}},
        "b": {"figures": {"W1": 8.0}},
        "c": {"error": "not there"},
    }
    cells = dict(zip(comparison.COLUMNS, comparison._ratios(engines), strict=True))
    assert cells["W1"] == "1.25"
    assert cells["W2"] == "1.50"
    assert cells["W3"] == "–"
    assert "not run: not there" in comparison.table({"x": engines})


def arguments(**changes: object) -> argparse.Namespace:
    given = {"folder": TINY, "only": "W0,W1,W4", "repeat": 2, "limit_s": 60.0, "divide": 64, "started": 0.0}
    return argparse.Namespace(**given | changes)


def test_a_driver_measures_what_its_engine_makes(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[int, int, float]] = []

    def generate(prompts: list[list[int]], output_len: int, temperature: float) -> int:
        calls.append((len(prompts), output_len, temperature))
        return len(prompts) * output_len

    measure(arguments(), generate, {"engine": "1"})
    line = capsys.readouterr().out
    found = json.loads(line.removeprefix("RESULT "))
    assert set(found["figures"]) == {"W1", "W1_ttft_ms", "W4"}
    assert len(found["runs"]["W1"]) == 2
    assert (1, 1, 0.0) in calls


def test_a_driver_whose_engine_stops_early_is_no_result() -> None:
    with pytest.raises(SystemExit, match="W1: 3 tokens came back, 4 were asked for"):
        measure(arguments(), lambda prompts, output_len, temperature: 3, {})


def test_core_beside_a_peer_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--shapes", "tiny", "--engines", "core,vllm", "--only", "W1", "--repeat", "1", "--divide", "64", "--out",
        str(tmp_path), "--", "--device", "cpu", "--context-length", "256",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["bench.gpu", *words])
    monkeypatch.setenv("PYTHONPATH", "")
    comparison.main()
    shown = capsys.readouterr().out
    assert "| tiny | core | – |" in shown
    assert "not run" in shown
    summary = json.loads(next(path for path in tmp_path.glob("gpu-*Z.json")).read_text())
    assert summary["results"]["tiny"]["core"]["figures"]["W1"] > 0
    assert "error" in summary["results"]["tiny"]["vllm"]


def test_a_shape_that_there_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--shapes", "llama-9"])
    with pytest.raises(SystemExit):
        comparison.main()
    assert "there is no shape 'llama-9'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (
            "Traceback\n  File x\nvllm.EngineDeadError: gone\n/usr/lib/tracker.py:254: UserWarning: leaked",
            "vllm.EngineDeadError: gone",
        ),
        ("(EngineCore) ValueError: 16\nRuntimeError: see above\n  warnings.warn(", "RuntimeError: see above"),
        ("loading\nkilled\n", "killed"),
        ("", "nothing was said"),
    ],
)
def test_why_a_peer_was_not_measured(log: str, told: str) -> None:
    assert comparison.last_error(log) == told
