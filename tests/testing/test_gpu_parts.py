"""`python -m tests.gpu` itself: what becomes of parts that pass, fail, hang, die, or cannot run."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core.testing.contracts.ops_cases import FLOAT32
from tests.gpu import __main__ as command
from tests.gpu import parts as all_parts
from tests.gpu import sanitizer
from tests.gpu.order import dealt
from tests.gpu.parts import PARTS, SANITIZER, Part

TESTS = """
import os, pathlib, signal, subprocess, time, pytest

def test_good(): print("seen")
@pytest.mark.skip(reason="no such library")
def test_left_out(): ...
def test_bad(): assert 1 == 2, "one is not two"
def test_slow(): time.sleep(60)
def test_dies(): os._exit(7)
def test_killed(): os.kill(os.getpid(), signal.SIGKILL)
def test_orphan():
    child = subprocess.Popen(["sleep", "50"], process_group=0)
    pathlib.Path(__file__).with_name("orphan.txt").write_text(str(child.pid))
    time.sleep(60)
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
    assert found["good-or-dies"].reason.startswith("the process ended itself (exit status 7): the last test begun was")
    assert found["good-or-dies"].reason.endswith("::test_dies")
    assert found["good-or-slow"].passed == 1, "what had ended before it was stopped"
    assert "1 of 2 tests over; running: " in found["good-or-slow"].reason
    assert found["good-or-slow"].reason.endswith("::test_slow")
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


def test_a_death_by_a_signal_and_of_a_worker_name_the_test(part, tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    found = run([part("good or killed"), part("good or killed or left", workers=2)], tmp_path)
    assert "signal 9, SIGKILL" in found["good-or-killed"].reason
    assert found["good-or-killed"].reason.endswith("::test_killed")
    shared = found["good-or-killed-or-left"]
    assert shared.result == "FAILED"
    assert [test.rpartition("::")[2] for test, _ in shared.failures] == ["test_killed"]
    assert shared.passed == 1


def test_a_part_waits_for_another_and_what_it_started_ends_with_it(part, tmp_path: Path) -> None:
    late, early = part("good", after="orphan"), part("orphan", 8.0)
    done = command.run_all([late, early], tmp_path, cores=2, end_s=time.monotonic() + 100)
    assert [outcome.result for outcome in done] == ["ok", "STOPPED"]
    assert (tmp_path / "good.jsonl").stat().st_mtime > (tmp_path / "orphan.jsonl").stat().st_mtime
    (number,) = (int(word) for word in (tmp_path / "orphan.txt").read_text().split())
    assert not Path(f"/proc/{number}").exists() or "Z" in Path(f"/proc/{number}/stat").read_text().split(")")[1][:3]


def test_longest_tests_are_dealt_out_first() -> None:
    names = ["a", "long1", "b", "c", "long2", "d", "e"]
    order = [names[place] for place in dealt(names, ["long2", "long1"], 2)]
    assert order == ["long1", "b", "d", "long2", "a", "c", "e"]
    for count in range(12):
        for workers in (1, 2, 3, 5):
            places = dealt([str(place) for place in range(count)], ["7", "3"], workers)
            assert sorted(places) == list(range(count))
            # As xdist cuts them: each takes what is left, divided by those that have none yet.
            begins, rest = [], list(places)
            for waiting in range(workers, 0, -1):
                mine, rest = rest[: len(rest) // waiting], rest[len(rest) // waiting :]
                begins += mine[:1]
            if count > 7 and workers > 1:
                assert {7, 3} <= set(begins)


def test_part_limits_fit() -> None:
    """What runs alone comes after the longest of the others; a tool's part after what compiles for it."""
    one_gpu = [part for part in PARTS if part.gpus == 1 and not part.by_name]
    beside = max(part.limit_s for part in one_gpu if not part.alone)
    assert beside + sum(part.limit_s for part in one_gpu if part.alone) <= 9 * 60
    limits = {part.name: part.limit_s for part in SANITIZER}
    assert max(part.limit_s + limits.get(part.after, 0) for part in SANITIZER) <= 8 * 60
    for known in (PARTS, SANITIZER):
        assert len({part.name for part in known}) == len(known)
        assert {part.after for part in known} <= {"", *(part.name for part in known)}


FAKE = """#!{python}
import os, subprocess, sys, time
def say(*lines): print(*("========= " + line for line in lines), sep="\\n", flush=True)
words = sys.argv[1:]
code = int(words[words.index("--error-exitcode") + 1])
how = os.environ["FAKE_SANITIZER"]
say("COMPUTE-SANITIZER")
status = subprocess.call(words[words.index({python!r}):])
if how == "hangs": time.sleep(60)
if how == "finds": say("Invalid __global__ read of size 4 bytes", "    at _few+0x10 in few.py:9", "    Host Frame: x")
if how == "warns": say("Warning: Race reported between Write access at a and Read access at b")
if how in ("alike", "races"):
    print("..s.", end="")
    say("Error: Race reported between Write access at k+0xa20 in k.py:124")
    say(f"    and Write access at k+{{'0xa20' if how == 'alike' else '0xb20'}} in k.py:124 [81 hazards]")
if how == "lost": say("Internal Sanitizer Error: the launch was not tracked. Errors might go undetected")
if status: say("Target application returned an error")
if how != "silent": say("ERROR SUMMARY: 1 error" if how == "finds" else "ERROR SUMMARY: 0 errors")
sys.exit(status or (code if how in ("finds", "alike", "races") else 0))
"""


CASES = [  # how the tool behaves, the part's tests, the result, how the reason begins
    ("clean", "good", "ok", ""),
    ("warns", "good", "ok", ""),
    ("finds", "good", "FAILED", "memcheck: Invalid __global__ read of size 4 bytes | at _few+0x10 in few.py:9; exit"),
    ("alike", "good", "ok", ""),
    ("alike", "bad", "FAILED", ""),
    (
        "races",
        "good",
        "FAILED",
        "memcheck: Error: Race reported between Write access at k+0xa20 in k.py:124 | and Write",
    ),
    ("clean", "bad", "FAILED", ""),
    ("finds", "bad", "FAILED", "memcheck: Invalid __global__ read"),
    ("clean", "dies", "FAILED", "the process ended itself (exit status 7): the last test begun was"),
    ("hangs", "good", "STOPPED", "after "),
    ("lost", "good", "FAILED", "memcheck could not check all: Internal Sanitizer Error"),
    ("silent", "good", "FAILED", "memcheck said nothing"),
]


def test_what_a_sanitizer_finds(part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in on the PATH, which does as it is told."""
    path = tmp_path / "bin" / "compute-sanitizer"
    path.parent.mkdir()
    path.write_text(FAKE.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    tools = [
        replace(part(names, 15.0 if how == "hangs" else 100), name=f"{how}-{names}",
                environment={"SANITIZER": "memcheck", "FAKE_SANITIZER": how})
        for how, names, *_ in CASES
    ]  # fmt: skip
    done = command.run_all(tools, tmp_path, cores=2, end_s=time.monotonic() + 200)
    for (how, names, result, reason), found in zip(CASES, done, strict=True):
        assert found.result == result, found
        assert found.reason.startswith(reason), found
        assert "one is not two" in str(found.failures) or names != "bad"
        assert ("Race reported" in str(found.lines)) is (how == "warns")
    log = (tmp_path / "clean-good.log").read_text()
    assert "--tool memcheck" in log
    assert " -n " not in log, "one process"


def test_a_sanitizer_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sanitizer, "program", lambda: None)
    for one in SANITIZER:
        assert "no compute-sanitizer" in command.lacking(one, 1, on_cpu=True)
    monkeypatch.setattr("sys.argv", ["x", "--sanitizer", "--out", str(tmp_path)])
    assert command.main() == 2


def test_a_sanitizers_part_brings_the_one_that_compiles() -> None:
    names = [part.name for part in command.chosen(SANITIZER, ["racecheck-moe"], with_earlier=True)]
    assert names == ["moe", "racecheck-moe"]
    assert [part.name for part in command.chosen(PARTS, ["steps"], with_earlier=False)] == ["steps"]
    assert [part.name for part in command.chosen(PARTS, ["flashinfer-suite"], with_earlier=False)] == [
        "flashinfer-suite"
    ]
    assert "flashinfer-suite" not in [part.name for part in command.chosen(PARTS, None, with_earlier=False)]


def test_a_sanitizer_checks_every_operation_once() -> None:
    """Those with one type of arguments too, which the suite skips for the others."""
    assert all_parts._FLOAT32 == FLOAT32


def test_where_the_sanitizer_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert sanitizer.program() == str(tool)


def test_every_test_that_a_part_names_exists() -> None:
    """Words of the longest tests, which are strings, stand in a file of the part or a suite that it runs."""
    root = Path(__file__).parents[2]
    suites = [*(root / "core/testing/contracts").glob("*.py")]
    for one in PARTS:
        places = [root / word.partition("::")[0] for word in one.arguments if word.startswith("tests/")]
        files = [file for place in places for file in (place.glob("*.py") if place.is_dir() else [place])]
        text = "".join(file.read_text() for file in [*files, *suites])
        for word in one.first:
            assert word.partition("[")[0] in text, (one.name, word)


def test_every_part_has_its_files() -> None:
    """A file that is not there is found now, not on the GPU."""
    root = Path(__file__).parents[2]
    for one in (*PARTS, *SANITIZER):
        for word in one.arguments:
            if word.startswith("tests/") and "pieces" not in word:
                assert (root / word.partition("::")[0]).exists(), word
