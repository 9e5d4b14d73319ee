"""`core bench offline` and `core bench latency`: in this process, no HTTP."""

from __future__ import annotations

import time
from typing import Any

import click

from core.bench.offline import OfflineBench
from core.bench.report import render, summarise
from core.cli.bench_serve import dataset_options, make_dataset
from core.cli.generate import ENGINE_SECTIONS
from core.cli.options import ResolvedSettings, settings_command
from core.cli.output import json_option


def _offline(resolved: ResolvedSettings, as_json: bool, **data: Any) -> int:
    if data["dataset"] == "multi-turn":
        raise click.UsageError("multi-turn needs a chat server; use `core bench serve --dataset multi-turn`")
    with OfflineBench(resolved.settings) as bench:
        conversations = make_dataset(vocab_size=bench.vocab_size, **data)
        records, wall_s = bench.run(conversations)
    summary = {"start_s": round(bench.start_s, 3), "dataset": data["dataset"]} | summarise(records, wall_s)
    click.echo(render(summary, as_json=as_json))
    return 1 if summary["failed"] else 0


def _latency(
    resolved: ResolvedSettings, batch_size: int, input_len: int, output_len: int, repeat: int, as_json: bool
) -> int:
    from core.bench.datasets import random_prompts

    with OfflineBench(resolved.settings) as bench:
        bench.run(random_prompts(batch_size, input_len, output_len, bench.vocab_size, seed=0))  # warm-up
        records = []
        begin = time.perf_counter()
        for repetition in range(repeat):
            prompts = random_prompts(batch_size, input_len, output_len, bench.vocab_size, seed=repetition + 1)
            records += bench.run(prompts)[0]
        wall_s = time.perf_counter() - begin
    summary: dict[str, Any] = {
        "start_s": round(bench.start_s, 3),
        "batch_size": batch_size,
        "repeat": repeat,
        "batch_s": round(wall_s / repeat, 4),
    }
    summary |= summarise(records, wall_s)
    click.echo(render(summary, as_json=as_json))
    return 1 if summary["failed"] else 0


command = settings_command(
    "offline",
    _offline,
    help="Run all requests at once in this process and print throughput and latencies.",
    sections=ENGINE_SECTIONS,
    params=[*dataset_options(), json_option()],
)
latency = settings_command(
    "latency",
    _latency,
    help="Run one batch again and again in this process and print its latencies. Prompts differ each time.",
    sections=ENGINE_SECTIONS,
    params=[
        click.Option(["batch_size", "--batch-size"], type=click.IntRange(min=1), default=1, show_default=True),
        click.Option(["input_len", "--input-len"], type=click.IntRange(min=1), default=128, show_default=True),
        click.Option(["output_len", "--output-len"], type=click.IntRange(min=1), default=128, show_default=True),
        click.Option(["repeat", "--repeat"], type=click.IntRange(min=1), default=3, show_default=True),
        json_option(),
    ],
)
