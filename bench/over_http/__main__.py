"""`python -m bench.over_http`: what HTTP costs. One client, one set of prompts, three ways to the same checkpoint:

    engine  our engine in this process, without HTTP, texts or a second process
    core    our server, streaming
    vllm    vLLM's server (its environment: bench/cpu/peers.sh), streaming

They are measured in turns. Prints a table and keeps the raw figures. An engine that cannot be measured is listed with
the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench.over_http.servers import Engine, core_server, load, vllm_server

ROOT = Path(__file__).resolve().parents[2]


Measure = Callable[[int, int], dict[str, Any]]  # streams, turn -> figures


@contextmanager
def started(name: str, args: argparse.Namespace) -> Iterator[Measure]:
    """One of the three, ready to be measured. Raises RuntimeError if it does not start."""
    if name == "engine":
        with Engine(args) as engine:
            yield engine.load
        return
    python = args.vllm_env / "bin" / "python"
    if name == "vllm" and not python.exists():
        raise RuntimeError(f"no environment at {args.vllm_env}; make one with bench/cpu/peers.sh")
    with core_server(args) if name == "core" else vllm_server(args, python) as server:
        yield lambda streams, turn: load(server, args, streams, turn)


def in_turns(names: list[str], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Figures of every turn, for each name and number of streams; {"error": why} for what could not be measured.

    All are up from the first turn to the last and wait while another is measured: a machine that becomes slower or
    faster meanwhile does so for all.
    """
    results: dict[str, dict[str, Any]] = {name: {count: [] for count in args.streams.split(",")} for name in names}
    with ExitStack() as stack:
        up: dict[str, Measure] = {}
        for name in names:
            try:
                up[name] = stack.enter_context(started(name, args))
            except (RuntimeError, OSError, TimeoutError) as error:
                results[name] = {"error": str(error)[-800:]}
        for turn in range(args.turns):
            for count in args.streams.split(","):
                for name in list(up):
                    try:
                        found = up[name](int(count), turn)
                    except (RuntimeError, OSError, TimeoutError) as error:
                        results[name] = {"error": str(error)[-800:]}
                        del up[name]
                        continue
                    results[name][count].append(found)
                    print(
                        f"turn {turn + 1}, {count} streams, {name}: {found['output_tokens_per_s']:.0f} tokens/s, "
                        f"first token {found['ttft_ms']['p50']:.2f} ms",
                        flush=True,
                    )
    return results


def table(results: dict[str, dict[str, Any]], streams: list[str]) -> str:
    """Markdown; medians over the turns. Overhead and later first token: against the engine in process in the same turn,
    with as many streams, and the least and the most of them. Processor time: of the server's main process, of the
    processes behind it, and of the client, in milliseconds for 1000 tokens."""
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
            turns, base = found[count], results.get("engine", {}).get(count) or []
            pairs = list(zip(turns, base, strict=False))
            over = _middle([100 * (1 - _rate(one) / _rate(other)) for one, other in pairs], " %", ".1f")
            later = _middle([_first_ms(one) - _first_ms(other) for one, other in pairs], " ms", "+.2f")
            cpu = " | ".join(_cpu(turns, process) for process in ("server", "engine", "client"))
            rate, first = median(map(_rate, turns)), median(map(_first_ms, turns))
            lines.append(f"| {name} | {count} | {rate:.0f} | {over} | {first:.2f} | {later} | {cpu} |")
    return "\n".join(lines)


def _rate(row: dict[str, Any]) -> float:
    return float(row["output_tokens_per_s"])


def _first_ms(row: dict[str, Any]) -> float:
    return float(row["ttft_ms"]["p50"])


def _middle(values: list[float], unit: str, form: str) -> str:
    if not values:
        return "–"
    spread = f" ({min(values):{form}} … {max(values):{form}})" if len(values) > 1 else ""
    return f"{median(values):{form}}{unit}{spread}"


def _cpu(turns: list[dict[str, Any]], process: str) -> str:
    spent_s = sum(row["cpu_s"].get(process, 0.0) for row in turns)
    known = any(process in row["cpu_s"] for row in turns)
    return f"{spent_s / sum(row['output_tokens'] for row in turns) * 1e6:.0f}" if known else "–"


def main() -> None:
    from plugin_demo import checkpoint

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", default="engine,core,vllm")
    parser.add_argument("--streams", default="1,64")
    parser.add_argument("--turns", type=int, default=3, help="how often each is measured, one after the other")
    parser.add_argument("--seconds", type=float, default=8.0, help="about how long each measurement takes")
    parser.add_argument("--pause-ms", type=float, default=0.0, help="without any request, before each round")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--model", type=Path, default=Path(checkpoint()))
    parser.add_argument("--vllm-env", type=Path, default=ROOT / "bench" / ".envs" / "vllm")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    args = parser.parse_args()
    results = in_turns(args.engines.split(","), args)
    args.out.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%MZ")
    target = args.out / f"http-{stamp}.json"
    machine = {"cpu": platform.processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    settings = {
        "input_len": args.input_len,
        "output_len": args.output_len,
        "dtype": args.dtype,
        "seconds": args.seconds,
        "turns": args.turns,
        "pause_ms": args.pause_ms,
    }
    target.write_text(
        json.dumps({"when": stamp, "machine": machine, "settings": settings, "results": results}, indent=1)
    )
    print(f"\n{table(results, args.streams.split(','))}\n\nraw figures: {target}")


if __name__ == "__main__":
    main()
