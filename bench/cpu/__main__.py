"""`python -m bench.cpu`: run every engine in turn on every shape, print a table, keep the raw JSON.

Peers need environments of their own (`bench/cpu/peers.sh` makes vLLM's); an engine whose environment is missing is
listed as not run, never silently left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.cpu.workloads import SHAPES, write_config

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COLUMNS = ("C0_s", "C1", "C2", "C3", "C4")


def interpreters(vllm_env: Path) -> dict[str, Path]:
    """Engine -> Python that runs its driver."""
    return {
        "core": Path(sys.executable),
        "vllm": vllm_env / "bin" / "python",
        "transformers": Path(sys.executable),
    }


def run_driver(engine: str, python: Path, folder: Path, args: argparse.Namespace, shape: str) -> dict[str, Any]:
    """One engine on one shape, in a fresh process; its figures, or the reason there are none."""
    if not python.exists():
        return {"error": f"no environment at {python}; make one with bench/cpu/peers.sh"}
    command = [
        str(python), str(HERE / f"drive_{engine}.py"), "--folder", str(folder), "--shape", shape, "--dtype", args.dtype,
        "--repeat", str(args.repeat), "--only", args.only, "--threads", str(args.threads),
        "--started", str(time.time()),
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=args.timeout, cwd=folder)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, Any] = json.loads(line[7:])
            return result
    return {"error": f"exit {done.returncode}: {done.stderr.strip()[-800:]}"}


def machine() -> dict[str, Any]:
    """What the figures were read on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown: one row per shape and engine; the best of each column per shape in bold."""
    lines = [
        "| shape | engine | C0 s | C1 tok/s | C2 tok/s | C3 in tok/s | C4 tok/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape, engines in results.items():
        best = {}
        for column in COLUMNS:
            values = [r[column] for r in engines.values() if column in r]
            best[column] = (min if column == "C0_s" else max)(values) if values else None
        for engine, row in engines.items():
            cells = [
                "–" if column not in row else f"**{row[column]}**" if row[column] == best[column] else str(row[column])
                for column in COLUMNS
            ]
            lines.append(f"| {shape} | {engine} | " + " | ".join(cells) + " |")
            if "error" in row:
                lines.append(f"| | | {row['error'].splitlines()[-1]} | | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--engines", default="core,vllm,transformers")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="C1,C2,C3,C4")
    parser.add_argument("--threads", type=int, default=0, help="0: each engine's default")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one engine on one shape")
    parser.add_argument("--vllm-env", type=Path, default=ROOT / "bench" / ".envs" / "vllm")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    args = parser.parse_args()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%MZ")
    with tempfile.TemporaryDirectory() as scratch:
        for shape in args.shapes.split(","):
            folder = Path(scratch) / shape
            write_config(shape, folder)
            results[shape] = {}
            for engine in args.engines.split(","):
                python = interpreters(args.vllm_env)[engine]
                results[shape][engine] = run_driver(engine, python, folder, args, shape)
                print(f"{shape} {engine}: {json.dumps(results[shape][engine])}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / f"cpu-{stamp}.json"
    target.write_text(
        json.dumps({"when": stamp, "machine": machine(), "dtype": args.dtype, "results": results}, indent=1)
    )
    print(f"\n{table(results)}\n\nraw figures: {target}")


if __name__ == "__main__":
    main()
