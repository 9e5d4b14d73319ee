"""`core bench workload`: the named workloads W0-W5 in this process, beside what the device's limits allow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from core.bench.workloads import WORKLOADS, chosen
from core.cli.generate import ENGINE_SECTIONS
from core.cli.options import ResolvedSettings, settings_command
from core.cli.output import json_option


def _workload(
    resolved: ResolvedSettings,
    names: tuple[str, ...],
    repeat: int,
    limit_s: float | None,
    divide: int,
    out: str | None,
    as_json: bool,
) -> int:
    from core.bench.first_token import measure_starts
    from core.bench.offline import OfflineBench
    from core.bench.workload_report import as_json as whole
    from core.bench.workload_report import render_measured, render_model, render_starts
    from core.bench.workload_run import WorkloadBench

    works = chosen(names or ("all",), divide)

    def tell(text: str) -> None:
        click.echo(text, err=as_json)

    starts = {}
    if works[0].figure == "start_s":
        starts = measure_starts(resolved.settings, works.pop(0))
        tell(render_starts(starts))
    measured: list[Any] = []
    with OfflineBench(resolved.settings) as bench:
        ready = WorkloadBench(bench)
        tell(f"ready in {bench.start_s:.2f} s; {render_model(ready.counts, ready.ceilings)}")
        for item in ready.run(works, repeat=repeat, limit_s=limit_s):
            tell(render_measured(item))
            measured.append(item)
        result = whole(bench.resolution, starts, measured, ready.counts, ready.ceilings, divide)
    text = json.dumps(result, indent=1)
    if out is not None:
        Path(out).write_text(text + "\n")
    if as_json:
        click.echo(text)
    return 0


command = settings_command(
    "workload",
    _workload,
    help="Run named workloads with random token ids, end-of-text ignored, after a warm-up on the same shapes, and print "
    "medians, their share of what memory and matrix unit allow (counted from the model, measured in the same run), and "
    "where the time of a step goes. "
    + "; ".join(f"{work.name}: {work.summary}" if name != "W0" else "W0: start to first token, in processes of their "
    "own, caches of compiled kernels empty and filled" for name, work in WORKLOADS.items())
    + ". Weights: --load-format dummy draws them.",
    sections=ENGINE_SECTIONS,
    params=[
        click.Argument(["names"], nargs=-1, type=click.Choice([*WORKLOADS, "all"])),
        click.Option(["repeat", "--repeat"], type=click.IntRange(min=1), default=3, help="Timed runs of each.",
                     show_default=True),
        click.Option(["limit_s", "--limit-s"], type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
                     help="Repeat a workload no more once its timed runs took so long together."),
        click.Option(["divide", "--divide"], type=click.IntRange(min=1), default=1, show_default=True,
                     help="Divide lengths and numbers of requests, for slower machines."),
        click.Option(["out", "--out"], type=click.Path(dir_okay=False), help="Write all figures to this file as JSON."),
        json_option(),
    ],
)  # fmt: skip
