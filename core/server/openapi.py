"""What /openapi.json says of routes that read their bodies themselves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def described(model: type[BaseModel], summary: str) -> dict[str, Any]:
    """Arguments of a route decorator: the body's schema and a summary."""
    schema = model.model_json_schema()
    content = {"application/json": {"schema": _inlined(schema, schema.pop("$defs", {}))}}
    return {"summary": summary, "openapi_extra": {"requestBody": {"required": True, "content": content}}}


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    """`value` with references replaced by what they name, as there is no shared place to refer to."""
    if isinstance(value, dict):
        if "$ref" in value:
            return _inlined(definitions[value["$ref"].rsplit("/", 1)[1]], definitions)
        return {key: _inlined(item, definitions) for key, item in value.items()}
    return [_inlined(item, definitions) for item in value] if isinstance(value, list) else value
