"""The one place where a protocol's wish for a form of the answer meets the sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from core.frontend.structured import asked_grammar
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams


def structured(
    sampling: SamplingParams, response_format: Mapping[str, Any] | None, *, param: str = "response_format"
) -> SamplingParams:
    """`sampling`, held to a format.

    response_format: OpenAI's object, as in {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.
    param: what the client's protocol calls it. Raises RequestError naming it.
    """
    if response_format is None:
        return sampling
    try:
        grammar = asked_grammar({"response_format": response_format})
    except RequestError as error:
        message = error.message.replace("response_format", param, 1)
        raise RequestError(message, param=param, code=error.code, hint=error.hint) from error
    if grammar is None:
        return sampling
    return msgspec.structs.replace(sampling, grammar=msgspec.structs.replace(grammar, param=param))
