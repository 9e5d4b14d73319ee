"""The one place where a protocol's wish for a form of the answer meets the sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams


def structured(
    sampling: SamplingParams, response_format: Mapping[str, Any] | None, *, param: str = "response_format"
) -> SamplingParams:
    """`sampling`, held to a format.

    response_format: OpenAI's object, as in {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.
    param: what the client's protocol calls it. Raises RequestError naming it.
    """
    if response_format is None or response_format.get("type") == "text":
        return sampling
    raise RequestError("structured output is not supported yet", param=param, code="unsupported_parameter")
