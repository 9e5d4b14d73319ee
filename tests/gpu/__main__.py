"""Proves on an NVIDIA GPU what only a GPU can show: `python -m tests.gpu [--out FOLDER]`, or `make test-gpu`.

Parts that time nothing run side by side, each a process with a hard limit; its log stays in FOLDER. A table comes last.
Exit status: 0 if all that could run passed, 1 if something failed or was stopped, 2 if nothing ran: no GPU, no proof.
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.gpu import sanitizer
from tests.gpu.parts import PARTS, SANITIZER, Part
from tests.gpu.running import Outcome, Running

LEAST_S = 8.0  # a part that has less time left is not begun


def num_gpus() -> int:
    """That can be seen, without torch and without taking one."""
    try:
        from plugin_nvidia.nvml import visible_gpus
    except ImportError:
        return 0
    return len(visible_gpus()[0])


def run_all(parts: list[Part], folder: Path, *, cores: int, end_s: float) -> list[Outcome]:
    """Those that may go together first, as many workers and compilers at a time as there are `cores` and a quarter
    more; then the others, one by one."""
    outcomes: dict[str, Outcome] = {}
    room = max(1, cores + cores // 4)
    for alone in (False, True):
        waiting = [part for part in parts if part.alone is alone]
        running: list[Running] = []
        while waiting or running:
            for one in [one for one in running if one.ended()]:
                running.remove(one)
                outcomes[one.part.name] = one.outcome()
                print(one.outcome().line(), flush=True)
            used = sum(one.cores for one in running)
            not_over = {part.name for part in (*waiting, *(one.part for one in running))}
            for part in list(waiting):
                workers = min(part.workers, cores)
                if part.after in not_over or (running and (alone or used + workers + part.jobs > room)):
                    continue
                waiting.remove(part)
                left = end_s - time.monotonic()
                if left < LEAST_S:
                    outcomes[part.name] = Outcome(part, "NOT RUN", reason="no time was left")
                    continue
                running.append(Running(part, folder, workers, min(part.limit_s, left)))
                used += running[-1].cores
            time.sleep(0.1)
    return [outcomes[part.name] for part in parts]


def table(outcomes: list[Outcome]) -> str:
    """What came of it, then why each test failed, and what was skipped."""
    lines = [f"{'part':20} {'result':8} {'passed':>6} {'failed':>6} {'skipped':>7} {'s':>6}  proves"]
    lines += [outcome.row() for outcome in outcomes]
    for outcome in outcomes:
        lines += [f"FAILED {test}: {reason}" for test, reason in outcome.failures]
    for outcome in outcomes:
        lines += [f"not proved, {outcome.part.name}: {count} x {reason}" for reason, count in outcome.skips.items()]
        if outcome.reason:
            lines.append(f"{outcome.result} {outcome.part.name}: {outcome.reason}")
    return "\n".join(lines)


def verdict(outcomes: list[Outcome]) -> tuple[int, str]:
    """(exit status, a sentence)"""
    bad = [outcome.part.name for outcome in outcomes if outcome.result in ("FAILED", "STOPPED", "NOT RUN")]
    proved = [outcome for outcome in outcomes if outcome.result == "ok"]
    if bad:
        return 1, f"NOT PROVED: {', '.join(bad)}"
    if not proved:
        return 2, "NOTHING RAN, so nothing was proved"
    skipped = [outcome.part.name for outcome in outcomes if outcome.result == "skipped"]
    return 0, f"{len(proved)} parts passed" + (f"; not run here: {', '.join(skipped)}" if skipped else "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/test-gpu"), help="folder of the logs")
    parser.add_argument("--bundle", type=Path, help="folder for the table and one archive of all logs, beside --out")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts")
    parser.add_argument("--limit-s", type=float, default=500.0, help="seconds for all together (default: 500)")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 4, help="workers at a time (default: all cores)")
    parser.add_argument("--sanitizer", action="store_true", help="our kernels' tests under compute-sanitizer instead")
    parser.add_argument("--list", action="store_true", help="name the parts and end")
    given = parser.parse_args()
    known = SANITIZER if given.sanitizer else PARTS
    if given.list:
        print("\n".join(f"{part.name:20} {part.limit_s:5.0f} s  {part.proves}" for part in known))
        return 0
    if unknown := set(given.only or ()) - {part.name for part in known}:
        parser.error(f"no part {', '.join(sorted(unknown))}; --list names them")
    parts = chosen(known, given.only, with_earlier=given.sanitizer)
    begin, gpus, on_cpu = time.monotonic(), num_gpus(), os.environ.get("CORE_GPU_TESTS_ON") == "cpu"
    given.out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    runnable = []
    for part in parts:
        if reason := lacking(part, gpus, on_cpu):
            outcomes.append(Outcome(part, "skipped", reason=reason))
        else:
            runnable.append(part)
    print(f"{gpus} GPUs, {given.cores} cores, {len(runnable)} parts, logs in {given.out}", flush=True)
    done = run_all(runnable, given.out, cores=given.cores, end_s=begin + given.limit_s)
    for outcome in done:
        if not gpus and not on_cpu and outcome.result == "ok":  # some tests of a plugin need no GPU
            outcome.result, outcome.reason = "skipped", "what needs no GPU passed"
    outcomes = sorted([*outcomes, *done], key=lambda outcome: parts.index(outcome.part))
    status, sentence = verdict(outcomes)
    if on_cpu:
        sentence += "; ON THE CPU, which checks the tests and proves nothing of a GPU"
    figures = "\n".join(f"{outcome.part.name}: {line}" for outcome in outcomes for line in outcome.lines)
    text = f"\n{figures}\n\n{table(outcomes)}\n{sentence} ({time.monotonic() - begin:.0f} s)\n"
    print(text, flush=True)
    (given.out / "summary.txt").write_text(text, encoding="utf-8")
    if given.bundle is not None:
        given.bundle.mkdir(parents=True, exist_ok=True)
        (given.bundle / "summary.txt").write_text(text, encoding="utf-8")
        with tarfile.open(given.bundle / "logs.tar.gz", "w:gz") as archive:
            archive.add(given.out, arcname="logs")
    return status


def chosen(known: Sequence[Part], names: Sequence[str] | None, *, with_earlier: bool) -> list[Part]:
    """Those of the names, None for all but those that are only run by name; with_earlier: and those that they wait
    for."""
    wanted = set(names or [part.name for part in known if not part.by_name])
    if with_earlier:
        wanted |= {part.after for part in known if part.name in wanted}
    return [part for part in known if part.name in wanted]


def lacking(part: Part, gpus: int, on_cpu: bool) -> str:
    """Why a part cannot run here, or ""."""
    if sanitizer.VARIABLE in part.environment and sanitizer.program() is None:
        return "there is no compute-sanitizer on the PATH or in CUDA_HOME; it comes with the CUDA toolkit"
    if part.gpus > 1 and gpus < part.gpus and not on_cpu:
        return f"needs {part.gpus} GPUs, {gpus} can be seen"
    files = [word.partition("::")[0] for word in part.arguments if word.startswith("tests/")]
    if missing := [name for name in files if not Path(name).exists()]:
        return f"there is no {missing[0]}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
