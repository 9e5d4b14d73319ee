"""`python -m bench.over_http`: what HTTP costs. One client, one set of prompts, three ways to the same checkpoint:

    engine  our engine in this process, without HTTP, texts or a second process
    core    our server, streaming
    vllm    vLLM's server (its environment: bench/cpu/peers.sh), streaming

Prints a table and keeps the raw figures. An engine that cannot be measured is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.over_http.servers import core_server, load, vllm_server

ROOT = Path(__file__).resolve().parents[2]


def engine_figures(args: argparse.Namespace) -> dict[str, Any]:
    """The engine's figures, from a process of its own: no server's memory or threads are in it."""
    command = [
        sys.executable, "-m", "bench.over_http.engine", "--model", str(args.model), "--streams", args.streams,
        "--seconds", str(args.seconds), "--input-len", str(args.input_len), "--output-len", str(args.output_len),
        "--dtype", args.dtype,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, Any] = json.loads(line[7:])
            return found
    return {"error": done.stderr.strip()[-800:]}


def server_figures(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A server's figures for each number of streams."""
    python = args.vllm_env / "bin" / "python"
    if name == "vllm" and not python.exists():
        return {"error": f"no environment at {args.vllm_env}; make one with bench/cpu/peers.sh"}
    try:
        with core_server(args) if name == "core" else vllm_server(args, python) as server:
            return {count: load(server, args, int(count)) for count in args.streams.split(",")}
    except (RuntimeError, OSError, TimeoutError) as error:
        return {"error": str(error)[-800:]}


def table(results: dict[str, dict[str, Any]], streams: list[str]) -> str:
    """Markdown. Overhead: against the engine in process, with as many streams. Processor time: of the server's main
    process, of the processes behind it, and of the client, in milliseconds for 1000 tokens."""
    lines = [
        "| | streams | tokens/s | overhead | first token ms (p50) | more than the engine | "
        "CPU ms per 1000 tokens: server | engine | client |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        if "error" in found:
            lines.append(f"| {name} | | not measured: {' '.join(found['error'].split())[-200:]} | | | | | | |")
            continue
        for count in streams:
            row, base = found[count], results.get("engine", {}).get(count)
            rate, first = row["output_tokens_per_s"], row["ttft_ms"]["p50"]
            over = f"{1 - rate / base['output_tokens_per_s']:.1%}" if base else "–"
            later = f"{first - base['ttft_ms']['p50']:+.2f} ms" if base else "–"
            cpu = " | ".join(_cpu(row, process) for process in ("server", "engine", "client"))
            lines.append(f"| {name} | {count} | {rate:.0f} | {over} | {first:.2f} | {later} | {cpu} |")
    return "\n".join(lines)


def _cpu(row: dict[str, Any], process: str) -> str:
    spent_s: float | None = row["cpu_s"].get(process)
    return "–" if spent_s is None else f"{spent_s / row['output_tokens'] * 1e6:.0f}"


def main() -> None:
    from plugin_demo import checkpoint

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", default="engine,core,vllm")
    parser.add_argument("--streams", default="1,64")
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long each measurement takes")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--model", type=Path, default=Path(checkpoint()))
    parser.add_argument("--vllm-env", type=Path, default=ROOT / "bench" / ".envs" / "vllm")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    args = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for name in args.engines.split(","):
        results[name] = engine_figures(args) if name == "engine" else server_figures(name, args)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%MZ")
    target = args.out / f"http-{stamp}.json"
    machine = {"cpu": platform.processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    settings = {
        "input_len": args.input_len,
        "output_len": args.output_len,
        "dtype": args.dtype,
        "seconds": args.seconds,
    }
    target.write_text(
        json.dumps({"when": stamp, "machine": machine, "settings": settings, "results": results}, indent=1)
    )
    print(f"\n{table(results, args.streams.split(','))}\n\nraw figures: {target}")


if __name__ == "__main__":
    main()
