"""Throughput of the engine in process with and without a JSON schema, at a fixed batch.

    python bench/structured.py [--streams 32] [--tokens 128] [--rounds 5] [--model demo] [--backend auto]

Every request generates the same number of tokens in both cases: the schema is a list that goes on for ever, and without
it the end of a text is ignored. Rounds of the two take turns, so that a busy machine slows both; printed are the
medians of tokens a second and of tokens a second of processor time, the share of each that the schema costs, and
where the time went a step. On a machine that others use too, processor time is the figure to look at.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from core import LLM

SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 4},
            "age": {"type": "integer"},
            "ok": {"type": "boolean"},
        },
        "required": ["name", "age", "ok"],
        "additionalProperties": False,
    },
    "minItems": 1000,
}
QUESTION = [{"role": "user", "content": "Tell me about the people of the town, one after the other."}]


def run(llm: LLM, streams: int, tokens: int, schema: bool) -> tuple[float, float, dict[str, float]]:
    """(tokens a second, tokens a second of processor time, what grew in the engine's statistics)."""
    before = llm._engine.engine.stats()
    params: dict[str, Any] = {"max_tokens": tokens, "temperature": 0.8, "ignore_eos": True}
    if schema:
        params["json_schema"] = SCHEMA
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    outputs = llm.chat([QUESTION] * streams, [{**params, "seed": seed} for seed in range(streams)])
    elapsed_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    after = llm._engine.engine.stats()
    generated = sum(len(output.token_ids) for output in outputs)
    assert generated == streams * tokens, "texts ended early: the two cases cannot be compared"
    return (
        generated / elapsed_s,
        generated / cpu_s,
        {name: value - before.get(name, 0.0) for name, value in after.items()},
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args()
    with LLM(args.model, log_interval_s=0, max_running_requests=args.streams, grammar_backend=args.backend) as llm:
        speeds: dict[bool, list[float]] = {False: [], True: []}
        cpu_speeds: dict[bool, list[float]] = {False: [], True: []}
        spent: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for schema in (False, True):
            run(llm, args.streams, 8, schema)
        for _ in range(args.rounds):
            for schema in (False, True):
                speed, cpu_speed, grown = run(llm, args.streams, args.tokens, schema)
                speeds[schema].append(speed)
                cpu_speeds[schema].append(cpu_speed)
                spent[schema].append(grown)
        backend = llm._engine.engine.hello.effective["grammar_backend"]
    print(f"{args.streams} streams of {args.tokens} tokens, {backend}")
    for name, found in (("elapsed", speeds), ("processor", cpu_speeds)):
        plain, held = statistics.median(found[False]), statistics.median(found[True])
        print(
            f"{name:9} without {plain:7.0f} tokens/s, with a schema {held:7.0f} tokens/s, cost {1 - held / plain:6.1%}"
        )
    for schema in (False, True):
        steps = statistics.median(grown["steps"] for grown in spent[schema])
        parts = {
            name: statistics.median(grown.get(key, 0.0) / grown["steps"] for grown in spent[schema]) * 1e3
            for name, key in (
                ("step", "step_seconds"), ("device", "device_seconds"), ("schedule", "schedule_seconds"),
                ("masks", "grammar_mask_seconds_total"),
            )
        }  # fmt: skip
        shown = ", ".join(f"{name} {value:.2f} ms" for name, value in parts.items())
        print(f"{'with' if schema else 'without':8} {steps:.0f} steps: {shown}")


if __name__ == "__main__":
    main()
