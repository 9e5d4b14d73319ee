"""What /openapi.json says of routes that read their bodies themselves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def described(model: type[BaseModel], summary: str) -> dict[str, Any]:
    """Arguments of a route decorator: the body's schema and a summary."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    content = {"application/json": {"schema": schema}}
    return {"summary": summary, "openapi_extra": {"requestBody": {"required": True, "content": content}}}
