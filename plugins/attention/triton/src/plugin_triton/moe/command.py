"""`core tune-moe`: measure tiles of the experts of a model on this GPU, and write the table that the runner reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure tiles for the experts of a model on this GPU and write the table the runner reads.")

TOKENS = "1,2,4,8,16,32,64,128,256,512,1024,2048,4096,8192"
WEIGHTS = ("bfloat16", "float16", "fp8_tensor", "fp8_channel", "fp8_block128")


@app.command()
def tune(
    experts: Annotated[int, typer.Option(min=1, help="Routed experts of a layer.")],
    top_k: Annotated[int, typer.Option(min=1, help="Experts that a token goes through.")],
    hidden: Annotated[int, typer.Option(min=1, help="Hidden size of the model.")],
    intermediate: Annotated[
        int, typer.Option(min=1, help="Intermediate size of an expert on one rank: the model's / tensor parallel size.")
    ],
    folder: Annotated[Path, typer.Option(help="Where tables lie; serve with --set moe/triton.tables=FOLDER.")] = Path(
        "moe-tables"
    ),
    weights: Annotated[str, typer.Option(help=f"One of {', '.join(WEIGHTS)}.")] = "bfloat16",
    tokens: Annotated[str, typer.Option(help="Numbers of tokens to measure, with commas.")] = TOKENS,
    layers: Annotated[int, typer.Option(min=2, help="Random layers in turn, so that the L2 cache does not help.")] = 6,
    processes: Annotated[int, typer.Option(min=1, help="Compilers at a time.")] = max(1, (os.cpu_count() or 2) - 2),
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the best tiles of each kernel too.")] = False,
) -> None:
    """Takes one to two minutes for a shape: compiling first, then measuring. The GPU should be idle otherwise."""
    if weights not in WEIGHTS:
        raise typer.BadParameter(f"{weights!r} is none of {', '.join(WEIGHTS)}", param_hint="--weights")
    if top_k > experts:
        raise typer.BadParameter(f"{top_k} of {experts} experts", param_hint="--top-k")
    counts = _numbers(tokens)

    import torch
    import triton

    from plugin_triton.moe import tune as tuner
    from plugin_triton.moe.configs import Shape, folder_name, write_table

    if not torch.cuda.is_available():
        typer.echo("there is no GPU here to measure on (torch.cuda.is_available() is false)", err=True)
        raise typer.Exit(1)
    shape = Shape(experts, top_k, hidden, intermediate, weights)
    dtype = getattr(torch, weights) if weights in ("bfloat16", "float16") else torch.bfloat16
    tuner.compile_all([shape], counts, dtype, processes)
    device = torch.device("cuda", torch.cuda.current_device())
    bench = tuner.Bench(shape, device, layers=layers, dtype=dtype)
    tell = typer.echo if verbose else lambda _: None
    found = []
    for count in counts:
        tried = list(tuner.tune(bench, count, tell))
        if not tried:
            typer.echo(f"{count} tokens: no tile fits this device (--verbose says why)", err=True)
            raise typer.Exit(1)
        config, time = min(tried, key=lambda item: item[1].us)
        typer.echo(f"{count:6} tokens {time}  block_m {config.block_m}")
        found.append((count, config, time.figures()))
    name = torch.cuda.get_device_name(device)
    path = folder / folder_name(name) / shape.file_name
    write_table(path, name, shape, found, {"triton": triton.__version__, "torch": torch.__version__})
    typer.echo(f"written to {path}; serve with --set moe/triton.tables={folder}")


def _numbers(text: str) -> list[int]:
    """Raises typer.BadParameter."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = [0]
    if counts[0] < 1:
        raise typer.BadParameter(f"{text!r} are not whole numbers of at least 1 with commas", param_hint="--tokens")
    return counts
