"""Sampling parameters as command-line options, made from the one table of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from core.frontend.parameters import PARAMETERS

# What makes sense to type; token-level switches stay with HTTP and `LLM`.
_SHOWN = (
    "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "stop", "ignore_eos", "seed", "n",
)  # fmt: skip


def sampling_options() -> list[click.Parameter]:
    """One option per parameter, None where nothing is typed. `--stop` may be repeated."""
    made: list[click.Parameter] = []
    for parameter in PARAMETERS:
        if parameter.field not in _SHOWN:
            continue
        flag = "--" + parameter.field.replace("_", "-")
        if parameter.type is bool:
            made.append(click.Option([parameter.field, flag], is_flag=True, default=None, help=parameter.summary))
        elif parameter.field == "stop":
            made.append(click.Option([parameter.field, flag], multiple=True, help=parameter.summary))
        else:
            made.append(click.Option([parameter.field, flag], type=parameter.type, help=parameter.summary))
    return made


def given_sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """The typed parameters among a command's own values, by the names that `LLM` takes."""
    chosen = {name: value for name, value in values.items() if name in _SHOWN and value not in (None, ())}
    if "stop" in chosen:
        chosen["stop"] = list(chosen["stop"])
    return chosen
