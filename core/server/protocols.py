"""What the bodies of protocols other than OpenAI's chat and completions share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from core.interfaces.errors import RequestError
from core.server.schemas import refuse


class ProtocolBody(BaseModel):
    """A generation request: the protocol's own fields, and core's where the protocol has none."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    stream: bool | None = Field(None, description="Answer with a stream.")
    priority: int | None = Field(None, ge=-(2**31), lt=2**31, description="Higher runs earlier.")
    cache_salt: str | None = Field(None, description="Prefixes are shared only between requests of equal salt.")

    def given(self) -> dict[str, Any]:
        """All fields by the names that the client typed."""
        return {**(self.__pydantic_extra__ or {}), **dict(self)}


def refuse_fields(body: ProtocolBody, names: Iterable[str]) -> None:
    """Raises RequestError for a field that would change the answer and is not supported; `names` are the protocol's."""
    extra: dict[str, Any] = body.__pydantic_extra__ or {}
    refuse(extra)
    for name in names:
        if extra.get(name) not in (None, [], {}, ""):
            raise RequestError(f"{name} is not supported", param=name, code="unsupported_parameter")
