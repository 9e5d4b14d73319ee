"""Raw prompts, as text or as token ids, one or many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.frontend.chat import Prompt
from core.interfaces.errors import RequestError
from core.server.context import ModelService

MAX_PROMPTS = 1024  # in one request


def as_list(given: Any) -> list[Any]:
    """One prompt or many, as many."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]
    return list(given)


async def make_prompts(service: ModelService, given: Any, param: str, add_special_tokens: bool = True) -> list[Prompt]:
    """given: str | list[str] | list[int] | list[list[int]]. Raises RequestError naming `param`."""
    items = as_list(given)
    if not items:
        raise RequestError(f"{param} is empty", param=param)
    if len(items) > MAX_PROMPTS:
        raise RequestError(f"{param} holds {len(items)} prompts; at most {MAX_PROMPTS} in one request", param=param)
    many = len(items) > 1
    return [
        await _prompt(service, item, f"{param}[{index}]" if many else param, add_special_tokens)
        for index, item in enumerate(items)
    ]


async def _prompt(service: ModelService, item: str | Sequence[int], param: str, special: bool) -> Prompt:
    if isinstance(item, str):
        text, ids = item, await service.tokenizer.encode_async(item, add_special_tokens=special)
    else:
        text, ids = "", list(item)
        size = service.hello.vocab_size
        if ids and not (min(ids) >= 0 and max(ids) < size):
            wrong = next(token for token in ids if not 0 <= token < size)
            raise RequestError(f"{param} holds {wrong}; token ids are below the vocabulary size {size}", param=param)
    if not ids:
        raise RequestError(f"{param} is empty", param=param)
    return Prompt(text, ids, service.tokenizer)
