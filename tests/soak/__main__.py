"""`python -m tests.soak --minutes 5 --seed 1 [--json FILE]`: exit code 1 if there are problems."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from tests.e2e.process import ServerProcess
from tests.soak.soak import FLAGS, keys_file, run

ROUND_S = 60.0


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of load; starts and faults come on top")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=None, help="checkpoint; default: the bundled one")
    parser.add_argument("--json", type=Path, default=None, help="file for the report")
    parser.add_argument("--log", type=Path, default=None, help="file for the server's log; default: none is kept")
    given = parser.parse_args()
    rounds = max(1, round(given.minutes * 60 / ROUND_S))
    load_s = given.minutes * 60 / (rounds + 0.5)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        log = (given.log or Path(folder) / "server.log").absolute()
        server = ServerProcess(given.model, log, *FLAGS, "--api-keys-file", str(keys_file(Path(folder))))
        try:
            server.wait_ready()
            work = run(server, seed=given.seed, warm_up_s=load_s / 2, load_s=load_s, rounds=rounds)
            report = asyncio.run(work)
        finally:
            server.stop()
    print(report.table())
    if given.json is not None:
        given.json.write_text(report.json() + "\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
