"""NVIDIA's compute-sanitizer around a part: how it is called, and what it found.

Options as of 2025 (CUDA 13). What it says begins with nine equals signs and a space.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

VARIABLE = "SANITIZER"  # of a part's environment: the tool
FOUND = 86  # exit status if the tests passed and the tool found something
_PREFIX = "========= "
# Parts of names of kernels that are not ours, which would take most of the time: PyTorch's own, and the libraries'.
_OTHERS = "at6native|at::native|cub|cutlass|xmma|nvjet|gemm|gemvx|splitKreduce|elementwise|vectorized|reduce_kernel"
_SUMMARIES = ("ERROR SUMMARY:", "RACECHECK SUMMARY:")
_SAYS_NOTHING = ("COMPUTE-SANITIZER", "Target application returned an error", *_SUMMARIES)
_HOST = ("Host Frame", "Saved host backtrace")
_MOST_LINES = 6
_BEGIN = re.compile(rf"[.sFExX]*{_PREFIX}")
_RACE = re.compile(r"Race reported between Write access at (?P<place>.+)$")
_RACE_WITH = re.compile(r"and Write access at (?P<place>.+?)( \[\d+ hazards?\])?$")


def program() -> str | None:
    """Where it is: on the PATH, or in the CUDA toolkit's folder."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(str(Path(home) / "bin") for home in homes if home)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def command(tool: str) -> list[str]:
    """To be followed by the program and its arguments."""
    words = [
        program() or "compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "all",
        "--max-connections", "100",  # parts run side by side, and ten is its own limit on the ports of all
        "--print-limit", "1000", "--kernel-name-exclude", f"regex={_OTHERS}",
    ]  # fmt: skip
    if tool == "memcheck":
        words += ["--padding", "64"]  # what is read or written behind a tensor is not another tensor's
    return words


def environment(tool: str) -> dict[str, str]:
    """PyTorch's own pool would put tensors side by side in one allocation, where no access is out of bounds."""
    return {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}


def findings(log: str) -> tuple[list[str], int]:
    """The first lines of what it found or could not do, without stacks of the host; and how many races it reports in
    which one instruction writes a place of shared memory from several lanes. Triton's reductions do that: lanes that
    hold the same sum all write it, and their sums may differ in the last bit (triton issue 7264)."""
    # Behind pytest's dots, too; but not its headings, which equals signs end.
    lines = [line.partition(_PREFIX)[2].strip() for line in log.splitlines() if _BEGIN.match(line)]
    lines = [line for line in lines if not line.endswith("===")]
    told = [line for line in lines if line and not line.startswith((*_SAYS_NOTHING, *_HOST))]
    kept: list[str] = []
    alike = 0
    for line in told:
        both = _RACE.search(kept[-1]) if kept else None
        other = _RACE_WITH.match(line)
        if both is not None and other is not None and both["place"] == other["place"]:
            kept.pop()
            alike += 1
        else:
            kept.append(line)
    return kept[:_MOST_LINES], alike


def has_ended(log: str) -> bool:
    """Whether it said at the end how much it found; else nothing was checked."""
    return any(f"{_PREFIX}{summary}" in log for summary in _SUMMARIES)
