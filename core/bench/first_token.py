"""W0: a start of the engine seen from outside: process start to ready, and to the first token.

`python -m core.bench.first_token` is the process that is measured: it reads settings (JSON) and prompt from standard
input, and writes a line when the engine is ready and one when its first token is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from core.bench.workloads import Workload
from core.config.sections import Settings
from core.interfaces.errors import EngineError

READY, TOKEN = "CORE-READY", "CORE-FIRST-TOKEN"
# Where kernel libraries put what they compile, unless a variable says otherwise.
_CACHE_VARIABLES = ("_CACHE_DIR", "_CACHE_PATH", "_CACHE_ROOT", "_CACHE_HOME")


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of a process. phases: of `ready_s`, as the engine counted them."""

    ready_s: float
    first_token_s: float
    phases: dict[str, float]


def measure_starts(settings: Settings, work: Workload) -> dict[str, Start]:
    """ "cold": with empty caches of compiled kernels; "warm": again, with what the first start left there.

    Both have a home folder of their own, so nothing of the user's is touched. Raises EngineError with the end of the
    process's output if it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="core-bench-") as folder:
        environment = cold_environment(Path(folder))
        return {name: start_once(settings, work, environment) for name in ("cold", "warm")}


def cold_environment(home: Path) -> dict[str, str]:
    """This process's variables with the places of caches below `home`."""
    import site

    kept = {k: v for k, v in os.environ.items() if not k.endswith(_CACHE_VARIABLES)}
    (home / "tmp").mkdir(exist_ok=True)
    moved = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "TMPDIR": str(home / "tmp")}
    return kept | moved | {"PYTHONUSERBASE": site.getuserbase()}


def start_once(settings: Settings, work: Workload, environment: dict[str, str]) -> Start:
    """One start of a fresh process."""
    given = json.dumps({"settings": settings.model_dump(mode="json"), "input_len": work.input_len})
    with tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=environment,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        seen: dict[str, float] = {}
        phases: dict[str, float] = {}
        with process:
            process.stdin.write(given)
            process.stdin.close()
            for line in process.stdout:
                word, _, rest = line.strip().partition(" ")
                if word in (READY, TOKEN):
                    seen[word] = time.perf_counter() - begin
                if word == READY:
                    phases = json.loads(rest)
        if process.returncode or len(seen) < 2:
            errors.seek(0)
            raise EngineError(f"the engine did not start (exit code {process.returncode}): {errors.read()[-2000:]}")
    return Start(seen[READY], seen[TOKEN], phases)


def main() -> None:
    """The measured process."""
    given = json.loads(sys.stdin.read())
    from core.bench.datasets import random_prompts
    from core.bench.offline import OfflineBench

    with OfflineBench(Settings.model_validate(given["settings"])) as bench:
        phases = {name: round(seconds, 3) for name, seconds in bench.engine.hello.phases.items()}
        print(READY, json.dumps(phases), flush=True)
        bench.run(random_prompts(1, given["input_len"], 1, bench.vocab_size, seed=0))
        print(TOKEN, flush=True)


if __name__ == "__main__":
    main()
