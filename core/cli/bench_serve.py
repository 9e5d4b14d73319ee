"""`core bench serve`: load on a running OpenAI-compatible server."""

from __future__ import annotations

import asyncio

import click

from core.bench.datasets import Conversation, multi_turn, random_prompts, shared_prefix
from core.bench.http_load import model_of, run_load
from core.bench.report import render, summarise
from core.cli.output import json_option


def dataset_options() -> list[click.Parameter]:
    """Which requests; shared by all bench commands."""
    return [
        click.Option(
            ["dataset", "--dataset"],
            type=click.Choice(["random", "shared-prefix", "multi-turn"]),
            default="random",
            help="random: independent prompts. shared-prefix: common beginnings. multi-turn: chats that go on.",
            show_default=True,
        ),
        _count("num_prompts", 64, "Requests (conversations for multi-turn)."),
        _count("input_len", 128, "Prompt tokens (words of a turn for multi-turn)."),
        _count("output_len", 128, "Tokens to generate; end-of-text is ignored."),
        _count("prefix_len", 1024, "shared-prefix: tokens in common."),
        _count("prefix_groups", 1, "shared-prefix: number of different prefixes."),
        _count("turns", 4, "multi-turn: turns of a conversation."),
        click.Option(["seed", "--seed"], type=int, default=0, help="Of the data.", show_default=True),
    ]


def _count(name: str, default: int, text: str) -> click.Option:
    flag = "--" + name.replace("_", "-")
    return click.Option([name, flag], type=click.IntRange(min=1), default=default, help=text, show_default=True)


def make_dataset(
    dataset: str,
    num_prompts: int,
    input_len: int,
    output_len: int,
    prefix_len: int,
    prefix_groups: int,
    turns: int,
    seed: int,
    vocab_size: int,
) -> list[Conversation]:
    """The requests that the options describe."""
    if dataset == "shared-prefix":
        return shared_prefix(num_prompts, prefix_groups, prefix_len, input_len, output_len, vocab_size, seed)
    if dataset == "multi-turn":
        return multi_turn(num_prompts, turns, input_len, output_len, seed)
    return random_prompts(num_prompts, input_len, output_len, vocab_size, seed)


def _serve(
    url: str,
    model: str | None,
    api_key: str | None,
    concurrency: int,
    request_rate: float,
    vocab_size: int,
    as_json: bool,
    **data: object,
) -> int:
    conversations = make_dataset(vocab_size=vocab_size, **data)  # type: ignore[arg-type]
    base = url.rstrip("/").removesuffix("/v1")

    async def run() -> int:
        name = model or await model_of(base, api_key)
        records, wall_s = await run_load(
            base,
            name,
            conversations,
            concurrency=concurrency,
            request_rate=request_rate,
            seed=int(str(data["seed"])),
            api_key=api_key,
        )
        summary = {"url": base, "model": name, "dataset": data["dataset"]} | summarise(records, wall_s)
        click.echo(render(summary, as_json=as_json))
        return 1 if summary["failed"] else 0

    return asyncio.run(run())


command = click.Command(
    "serve",
    callback=_serve,
    help="Send requests to a server and print what its clients saw: time to first token, inter-token latency, "
    "throughput, cache hits. Works with any OpenAI-compatible server.",
    params=[
        click.Option(["url", "--url"], default="http://127.0.0.1:30000", help="The server.", show_default=True),
        click.Option(["model", "--model"], help="Name in requests. Default: the first that the server lists."),
        click.Option(["api_key", "--api-key"], envvar="CORE_API_KEY", help="Bearer token."),
        _count("concurrency", 64, "Most requests open at a time."),
        click.Option(
            ["request_rate", "--request-rate"],
            type=click.FloatRange(min=0, min_open=True),
            default=float("inf"),
            help="Conversations started a second (Poisson).  [default: all at once]",
        ),
        click.Option(
            ["vocab_size", "--vocab-size"],
            type=click.IntRange(min=8),
            default=1000,
            help="Random token ids are below this.",
            show_default=True,
        ),
        *dataset_options(),
        json_option(),
    ],
)
