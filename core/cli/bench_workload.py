"""`core bench workload`: the named workloads W0-W5 in this process, beside what the device's limits allow."""

from __future__ import annotations

from pathlib import Path

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
    kernels: int,
    out: str | None,
    as_json: bool,
) -> int:
    from core.bench.offline import prepare

    prepare(resolved.settings)  # before torch is imported
    from core.bench.session import WorkloadSession

    session = WorkloadSession(
        resolved.settings,
        divisor=divide,
        tell=lambda text: click.echo(text, err=as_json),
        save=None if out is None else Path(out),
    )
    session.run(chosen(names or ("all",), divide), repeat=repeat, limit_s=limit_s, kernels=kernels)
    if as_json:
        click.echo(session.json())
    return 1 if session.failed else 0


def _described() -> str:
    w0 = "W0: start to first token, in processes of their own, caches of compiled kernels empty and filled"
    return "; ".join([w0, *(f"{work.name}: {work.summary}" for work in WORKLOADS.values() if work.name != "W0")])


command = settings_command(
    "workload",
    _workload,
    help="Run named workloads (default: all) with random token ids, end-of-text ignored, after a warm-up on the same "
    "shapes. Prints medians, their share of what memory and matrix unit allow (bytes and operations counted from the "
    "model, ceilings measured in the same run), and where the time of a step goes. With --load-format dummy a folder "
    f"with config.json is enough. {_described()}.",
    sections=ENGINE_SECTIONS,
    params=[
        click.Argument(["names"], nargs=-1, type=click.Choice([*WORKLOADS, "all"])),
        click.Option(
            ["repeat", "--repeat"], type=click.IntRange(min=1), default=3, help="Timed runs of each.", show_default=True
        ),
        click.Option(
            ["limit_s", "--limit-s"],
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="Repeat a workload no more once its timed runs took so long together.",
        ),
        click.Option(
            ["divide", "--divide"],
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Divide lengths and numbers of requests, for slower machines.",
        ),
        click.Option(
            ["kernels", "--kernels"],
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Profile each workload too and list so many of the longest kernels of a step.",
        ),
        click.Option(["out", "--out"], type=click.Path(dir_okay=False), help="Write all figures to this file as JSON."),
        json_option(),
    ],
)
