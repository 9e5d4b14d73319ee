"""What every driver of another engine does: options, warm-up, repetitions, one JSON line.

Standard library and `core.bench.workloads` (standard library too): each driver runs in its engine's own environment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from core.bench.workloads import Workload, chosen  # noqa: E402

WARM_UP_TOKENS = 16
# generate(prompts, tokens of each answer, temperature) -> tokens made
Generate = Callable[[list[list[int]], int, float], int]


def arguments() -> argparse.Namespace:
    """Command line of every driver. quantization: "" or "fp8", as the engine spells it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True, help="folder with config.json")
    parser.add_argument("--quantization", default="")
    parser.add_argument("--only", default="all")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit-s", type=float, default=float("inf"))
    parser.add_argument("--divide", type=int, default=1)
    parser.add_argument("--started", type=float, default=0.0, help="time.time() just before this process was started")
    return parser.parse_args()


def measure(args: argparse.Namespace, generate: Generate, versions: dict[str, str]) -> None:
    """Time the workloads on an engine that is ready, and print the result. Time to the first token of W1 is that of a
    whole call that gives one token."""
    config = json.loads((Path(args.folder) / "config.json").read_text())
    result: dict[str, Any] = {"versions": versions, "figures": {}, "runs": {}}
    if args.started:
        result["figures"]["W0"] = round(time.time() - args.started, 2)
    for work in chosen(args.only.split(","), args.divide):
        if work.figure == "start_s":
            continue
        _once(work, generate, config["vocab_size"], 0, min(work.output_len, WARM_UP_TOKENS))
        runs, begin = [], time.perf_counter()
        for repetition in range(args.repeat):
            runs.append(_figure(work, generate, config["vocab_size"], 10 * repetition + 1))
            if time.perf_counter() - begin >= args.limit_s:
                break
        result["figures"][work.name] = round(statistics.median(run[0] for run in runs), 3)
        result["runs"][work.name] = [round(run[0], 3) for run in runs]
        if work.figure == "ms_per_token":
            result["figures"][f"{work.name}_ttft_ms"] = round(statistics.median(run[1] for run in runs), 2)
    print("RESULT " + json.dumps(result), flush=True)


def _figure(work: Workload, generate: Generate, vocab_size: int, draw: int) -> tuple[float, float]:
    """(figure, milliseconds to the first token where the figure is milliseconds per token)."""
    seconds = _once(work, generate, vocab_size, draw, work.output_len)
    if work.figure != "ms_per_token":
        return work.rate(seconds), 0.0
    first_s = _once(work, generate, vocab_size, draw + 1, 1)
    return (seconds - first_s) / (work.output_len - 1) * 1e3, first_s * 1e3


def _once(work: Workload, generate: Generate, vocab_size: int, draw: int, output_len: int) -> float:
    prompts = work.prompts(vocab_size, draw)
    begin = time.perf_counter()
    made = generate(prompts, output_len, work.temperature)
    seconds = time.perf_counter() - begin
    if made != len(prompts) * output_len:
        raise SystemExit(f"{work.name}: {made} tokens came back, {len(prompts) * output_len} were asked for")
    return seconds
