"""`core bench kernels`: single operations of a model's shapes, by every installed plugin, beside PyTorch."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import click

from core.cli.generate import ENGINE_SECTIONS
from core.cli.options import ResolvedSettings, settings_command
from core.cli.output import json_option

KINDS = ("linear", "attention", "experts")
# (sequences, new tokens, length with them): decodes, then prompts.
ATTENTION = ((1, 1, 384), (64, 1, 640), (128, 1, 4224), (256, 1, 1280), (1, 8192, 8192), (8, 1024, 1024))


class _Numbers(click.ParamType):
    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            numbers = []
        if not numbers or min(numbers) < 1:
            self.fail(f"{value!r} is no list of whole numbers from 1, such as 1,16,256", param, ctx)
        return numbers


def _kernels(
    resolved: ResolvedSettings, kinds: tuple[str, ...], rows: list[int], divide: int, out: str | None, as_json: bool
) -> int:
    from core.bench.offline import prepare

    prepare(resolved.settings)  # before torch is imported
    from core.bench.ceilings import measure_ceilings
    from core.bench.kernel_cases import KernelCases
    from core.bench.kernels import render_kernel, time_cases
    from core.bench.workload_report import facts

    made = KernelCases(resolved.settings)
    ceilings = measure_ceilings(made.device, made.dtype)
    click.echo(
        f"ceilings: copy {ceilings.copy_bytes_per_s / 1e9:.0f} GB/s, product "
        f"{ceilings.product_ops_per_s / 1e12:.1f} TFLOP/s",
        err=as_json,
    )
    work = [
        (max(1, seqs // divide), max(1, new // divide), max(2, length // divide)) for seqs, new, length in ATTENTION
    ]
    cases = {"linear": lambda: made.linears(rows), "attention": lambda: made.attention(work),
             "experts": lambda: made.experts(rows)}  # fmt: skip
    figures = []
    for figure in time_cases(chain.from_iterable(cases[kind]() for kind in kinds or KINDS), ceilings, made.device):
        figures.append(figure)
        click.echo(render_kernel(figure), err=as_json)
    found = facts(made.resolution) | {"ceilings": asdict(ceilings), "kernels": [asdict(figure) for figure in figures]}
    text = json.dumps(found, indent=1)
    if out is not None:
        Path(out).write_text(text + "\n")
    if as_json:
        click.echo(text)
    return 1 if any(figure.failed for figure in figures) else 0


command = settings_command(
    "kernels",
    _kernels,
    help="Time the linear layers, attention and experts of a model's shapes: as the chosen quantization method and op "
    "tables compute them, by every installed attention and expert plugin, and by PyTorch. Microseconds of device work, "
    "and the share of what memory and matrix unit allow; * is the fastest.",
    sections=ENGINE_SECTIONS,
    params=[
        click.Argument(["kinds"], nargs=-1, type=click.Choice(KINDS)),
        click.Option(
            ["rows", "--rows"],
            type=_Numbers(),
            default="1,16,64,256,2048,8192",
            show_default=True,
            help="Numbers of tokens, for linear layers and experts.",
        ),
        click.Option(
            ["divide", "--divide"],
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Divide the sizes of the attention cases, for slower machines.",
        ),
        click.Option(["out", "--out"], type=click.Path(dir_okay=False), help="Write all figures to this file as JSON."),
        json_option(),
    ],
)
