"""`core generate`: answer prompts given as arguments or on standard input, in this process."""

from __future__ import annotations

import sys
from typing import Any

import click

from core.cli.options import ResolvedSettings, settings_command
from core.cli.output import json_option, print_json
from core.cli.sampling_options import given_sampling, sampling_options

ENGINE_SECTIONS = ("model", "cache", "scheduler", "engine")


def _generate(
    resolved: ResolvedSettings, prompts: tuple[str, ...], raw: bool, system: str | None, as_json: bool, **own: Any
) -> int:
    texts = list(prompts)
    if not texts and not sys.stdin.isatty():
        texts = [sys.stdin.read()]
    if not any(text.strip() for text in texts):
        raise click.UsageError('give a prompt, as in `core generate "Hello"`, or text on standard input')
    from core.llm import LLM

    with LLM.from_settings(resolved.settings) as llm:
        sampling = given_sampling(own)
        if raw or llm.tokenizer.template is None:
            outputs = llm.generate(texts, sampling)
        else:
            start = [{"role": "system", "content": system}] if system else []
            outputs = llm.chat([[*start, {"role": "user", "content": text}] for text in texts], sampling)
    failed = 0
    for text, output in zip(texts, outputs, strict=True):
        for completion in output.completions:
            failed += completion.finish_reason == "error"
            if as_json:
                print_json(
                    {
                        "prompt": text,
                        "text": completion.text,
                        "reasoning": completion.reasoning,
                        "finish_reason": completion.finish_reason,
                        "prompt_tokens": len(output.prompt_token_ids),
                        "completion_tokens": len(completion.token_ids),
                        "cached_tokens": output.cached_tokens,
                        "error": completion.error,
                    }
                )
            elif completion.error is not None:
                click.echo(f"error: {completion.error}", err=True)
            else:
                click.echo(completion.text)
    return 1 if failed else 0


command = settings_command(
    "generate",
    _generate,
    help="Answer prompts and print the texts. Each PROMPT is one user message, unless --raw; without any, standard "
    "input is the prompt.",
    sections=ENGINE_SECTIONS,
    params=[
        click.Argument(["prompts"], nargs=-1),
        click.Option(["raw", "--raw"], is_flag=True, help="Continue the text as it is, without the chat template."),
        click.Option(["system", "--system"], help="System message."),
        *sampling_options(),
        json_option(),
    ],
)
