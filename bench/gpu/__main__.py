"""`python -m bench.gpu`: shapes with drawn weights, engine after engine, one table, raw figures as JSON.

core runs by `core bench workload`, one process a shape with one load of the weights. Other engines run where the Python
given by --sglang-python or --vllm-python has them; elsewhere the figures of `recorded.json` stand beside ours, marked
with their date: they come from another run and, it may be, another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.bench.workloads import WORKLOADS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHAPES = ROOT / "bench" / "shapes"
RECORDED = HERE / "recorded.json"
# Name of a row -> folder with config.json, and quantization while loading.
CASES = {
    "llama-3.1-8b": ("llama-3.1-8b", ""),
    "llama-3.1-8b-fp8": ("llama-3.1-8b", "fp8"),
    "qwen3-30b-a3b": ("qwen3-30b-a3b", ""),
    "glm-4.7-flash": ("glm-4.7-flash", ""),
    "tiny": ("tiny", ""),
}
COLUMNS = ("W0", "W1", "W1_ttft_ms", *(name for name in WORKLOADS if name not in ("W0", "W1")))
LESS_IS_BETTER = ("W0", "W1", "W1_ttft_ms")


def run_core(case: str, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """core's figures; its own output goes through as it comes."""
    shape, quantization = CASES[case]
    command = [
        sys.executable, "-c", "from core.cli.main import main; main()", "bench", "workload", *args.only.split(","),
        "--model", str(SHAPES / shape), "--load-format", "dummy", "--repeat", str(args.repeat), "--divide",
        str(args.divide), "--out", str(out), *args.core_args,
    ]  # fmt: skip
    if args.limit_s is not None:
        command += ["--limit-s", str(args.limit_s)]
    if quantization:
        command += ["--quantization", quantization]
    out.unlink(missing_ok=True)
    error = ""
    try:
        done = subprocess.run(command, timeout=args.timeout, cwd=ROOT)
        error = f"exit {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        error = f"not finished after {args.timeout:.0f} s"
    if not out.exists():
        return {"error": error or "no figures"}
    raw = json.loads(out.read_text())  # after each workload: what there is counts
    figures = {name: item["figure"] for name, item in raw["workloads"].items()}
    if "W1" in raw["workloads"]:
        figures["W1_ttft_ms"] = raw["workloads"]["W1"]["ttft_ms"]
    if "warm" in raw["starts"]:
        figures["W0"] = raw["starts"]["warm"]["ready_s"]
    return {"figures": figures, "raw": raw} | ({"error": error} if error else {})


def run_peer(engine: str, python: Path, case: str, args: argparse.Namespace) -> dict[str, Any]:
    """A peer in a fresh process; its figures, or the reason there are none."""
    shape, quantization = CASES[case]
    command = [
        str(python), str(HERE / f"drive_{engine}.py"), "--folder", str(SHAPES / shape), "--only", args.only,
        "--repeat", str(args.repeat), "--divide", str(args.divide), "--quantization", quantization,
        "--started", str(time.time()),
    ]  # fmt: skip
    if args.limit_s is not None:
        command += ["--limit-s", str(args.limit_s)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout)
    except (subprocess.TimeoutExpired, OSError) as error:
        return {"error": str(error)}
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, Any] = json.loads(line[7:])
            return result
    return {"error": f"exit {done.returncode}: {last_error(done.stderr)}"}


def last_error(log: str) -> str:
    """The last line of a log that names an error; else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["nothing was said"]
    named = [line for line in lines if re.match(r"(\([^)]*\) )?[\w.]*(Error|Exception|Exit)\b", line)]
    return (named or lines)[-1][-400:]


def recorded(case: str) -> dict[str, dict[str, Any]]:
    """Engine -> figures of an earlier day, with where they are from in the name."""
    data = json.loads(RECORDED.read_text())
    rows = data["figures"].get(case, {})
    return {
        f"{engine} {data['versions'][engine]} (recorded {data['when']}, other run)": {"figures": figures}
        for engine, figures in rows.items()
    }


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown, one row a case and engine, and core's distance from the best of the others: above 1 is better."""
    lines = ["| shape | engine | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for case, engines in results.items():
        for engine, row in engines.items():
            figures = row.get("figures", {})
            cells = [_cell(figures.get(column)) for column in COLUMNS]
            lines.append(f"| {case} | {engine} | " + " | ".join(cells) + " |")
            if "error" in row:
                lines.append(
                    f"| | {'in part' if figures else 'not run'}: {row['error'].splitlines()[-1]} |"
                    + " |" * len(COLUMNS)
                )
        lines.append(f"| {case} | core / best other | " + " | ".join(_ratios(engines)) + " |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def _ratios(engines: dict[str, dict[str, Any]]) -> list[str]:
    ours = engines.get("core", {}).get("figures", {})
    cells = []
    for column in COLUMNS:
        others = [
            row["figures"][column]
            for name, row in engines.items()
            if name != "core" and column in row.get("figures", {})
        ]
        if column not in ours or not others:
            cells.append("–")
        elif column in LESS_IS_BETTER:
            cells.append(f"{min(others) / ours[column]:.2f}")
        else:
            cells.append(f"{ours[column] / max(others):.2f}")
    return cells


def driver_version() -> str | None:
    """Of the graphics card, as its own tool says."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split("\n")
        return "; ".join(sorted({line.strip() for line in lines if line.strip()})) or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="llama-3.1-8b,qwen3-30b-a3b", help=f"of {', '.join(CASES)}")
    parser.add_argument("--engines", default="core", help="of core, sglang, vllm")
    parser.add_argument("--only", default="all", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit-s", type=float, help="as in `core bench workload`")
    parser.add_argument("--divide", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one engine on one shape")
    parser.add_argument("--sglang-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--vllm-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("core_args", nargs="*", help="after `--`: more flags for core")
    args = parser.parse_args()
    for case in args.shapes.split(","):
        if case not in CASES:
            parser.error(f"there is no shape {case!r}; shapes: {', '.join(CASES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%MZ")
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    pythons = {"sglang": args.sglang_python, "vllm": args.vllm_python}
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for case in args.shapes.split(","):
        print(f"== {case}", flush=True)
        results[case] = {}
        for engine in args.engines.split(","):
            if engine == "core":
                results[case][engine] = run_core(case, args, args.out / f"gpu-{stamp}-{case}.json")
            else:
                results[case][engine] = run_peer(engine, pythons[engine], case, args)
        if args.divide == 1 and args.engines == "core":
            results[case] |= recorded(case)
    summary = {
        "when": stamp,
        "driver": driver_version(),
        "results": {case: {name: {k: v for k, v in row.items() if k != "raw"} for name, row in rows.items()}
                    for case, rows in results.items()},
    }  # fmt: skip
    (args.out / f"gpu-{stamp}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\n{summary['driver'] or 'no driver found'}\n{table(results)}\n\nraw figures: {args.out}/gpu-{stamp}*.json")


if __name__ == "__main__":
    main()
