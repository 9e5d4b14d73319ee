"""The text of a parameter to a JSON value, by the tool's schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from core.interfaces.parsers import Tool


def schemas_of(tools: Sequence[Tool], name: str) -> Mapping[str, Any]:
    """Parameter -> its JSON schema, of the tool called `name`; empty if no such tool was offered (that is for core to
    judge, not for a parser)."""
    for tool in tools:
        function = tool.get("function", {})
        if function.get("name") == name:
            properties = (function.get("parameters") or {}).get("properties")
            return properties if isinstance(properties, Mapping) else {}
    return {}


def to_json(text: str, schema: Any) -> Any:
    """`text` as it stands where the schema says string, or where it says another type and the text is none of it. What
    is wrong then is reported to the client by core, which checks arguments against the schema."""
    types = schema.get("type") if isinstance(schema, Mapping) else None
    if types == "string" or (types is None and schema):
        return text
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
    # Without a schema only what can be nothing else becomes structured: a text may well look like a number.
    return value if types is not None or isinstance(value, dict | list) else text


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
