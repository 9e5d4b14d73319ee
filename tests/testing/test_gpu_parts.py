"""`python -m tests.gpu` itself: what becomes of parts that pass, fail, hang, die, or cannot run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.gpu import __main__ as command
from tests.gpu.parts import PARTS, SANITIZER, Part

TESTS = """
import os, time, pytest

def test_good(): print("seen")
@pytest.mark.skip(reason="no such library")
def test_left_out(): ...
def test_bad(): assert 1 == 2, "one is not two"
def test_slow(): time.sleep(60)
def test_dies(): os._exit(7)
"""


@pytest.fixture
def part(tmp_path: Path):
    """Makes a part out of some of TESTS."""
    (tmp_path / "test_of_a_part.py").write_text(TESTS)

    def made(names: str, limit_s: float = 60, **given: object) -> Part:
        arguments = (str(tmp_path / "test_of_a_part.py"), "-k", names, "-c", "/dev/null", "--rootdir", str(tmp_path))
        return Part(names.replace(" ", "-"), "something", arguments, limit_s, **given)

    return made


def run(parts: list[Part], folder: Path, left_s: float = 100.0) -> dict[str, command.Outcome]:
    done = command.run_all(parts, folder, cores=2, end_s=time.monotonic() + left_s)
    return {outcome.part.name: outcome for outcome in done}


def test_what_becomes_of_parts(part, tmp_path: Path) -> None:
    parts = [part("good"), part("good or bad or left"), part("left"), part("good or dies"), part("good or slow", 8.0)]
    found = run(parts, tmp_path)
    assert [outcome.result for outcome in found.values()] == ["ok", "FAILED", "skipped", "FAILED", "STOPPED"]
    mixed = found["good-or-bad-or-left"]
    assert (mixed.passed, len(mixed.failures), mixed.skips) == (1, 1, {"no such library": 1})
    assert "one is not two" in mixed.failures[0][1]
    assert "exit status 7" in found["good-or-dies"].reason
    assert found["good-or-slow"].passed == 1, "what had ended before it was stopped"
    assert found["good-or-slow"].seconds < 30
    assert "seen" in (tmp_path / "good.log").read_text()
    text = command.table(list(found.values()))
    assert "FAILED" in text
    assert "one is not two" in text
    assert "1 x no such library" in text
    assert command.verdict(list(found.values())) == (1, "NOT PROVED: good-or-bad-or-left, good-or-dies, good-or-slow")


def test_without_time_nothing_is_begun(part, tmp_path: Path) -> None:
    found = run([part("good")], tmp_path, left_s=2.0)
    assert found["good"].result == "NOT RUN"
    assert command.verdict(list(found.values()))[0] == 1


def test_verdicts(part) -> None:
    good, left = command.Outcome(part("good"), "ok", 3), command.Outcome(part("left"), "skipped", reason="no GPU")
    assert command.verdict([good, left]) == (0, "1 parts passed; not run here: left")
    assert command.verdict([left])[0] == 2


def test_without_a_gpu_nothing_is_proved(
    part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CORE_GPU_TESTS_ON", raising=False)
    monkeypatch.setattr(command, "num_gpus", lambda: 0)
    monkeypatch.setattr(command, "PARTS", (part("good"), part("left", gpus=2)))
    bundle = tmp_path / "bundle"
    monkeypatch.setattr("sys.argv", ["x", "--out", str(tmp_path / "out"), "--bundle", str(bundle)])
    assert command.main() == 2
    assert "needs 2 GPUs, 0 can be seen" in capsys.readouterr().out
    assert sorted(path.name for path in bundle.iterdir()) == ["logs.tar.gz", "summary.txt"]


def test_every_part_has_its_files() -> None:
    """A file that is not there is found now, not on the GPU."""
    root = Path(__file__).parents[2]
    for one in (*PARTS, *SANITIZER):
        for word in one.arguments:
            if word.startswith("tests/") and "pieces" not in word:
                assert (root / word.partition("::")[0]).exists(), word
