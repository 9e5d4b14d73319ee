"""What the protocols other than OpenAI's chat and completions share: the base of their bodies, and how they ask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from core.frontend.chat import Prompt
from core.frontend.processors import with_processors
from core.frontend.pump import Answers
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams
from core.server.context import ModelService
from core.server.schemas import ProcessorFields, given_fields


class ProtocolBody(ProcessorFields):
    """A generation request: the protocol's own fields, and core's where the protocol has none."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    stream: bool | None = Field(None, description="Answer with a stream.")
    priority: int | None = Field(None, ge=-(2**31), lt=2**31, description="Higher runs earlier.")
    cache_salt: str | None = Field(None, description="Prefixes are shared only between requests of equal salt.")
    timeout: float | None = Field(None, gt=0, lt=1e9, description="Seconds after which the request ends with an error.")
    rid: str | None = Field(None, description="The client's own id, for /abort_request.")

    def given(self) -> dict[str, Any]:
        """The fields that the client gave, by the names that it typed."""
        return given_fields(self)


def answers_to(
    service: ModelService, body: ProtocolBody, prompt: Prompt, sampling: SamplingParams, *, param: str
) -> Answers:
    """The one answer to `prompt`; nothing runs until it is iterated. param: the field that the prompt is made of.
    Raises RequestError if it does not fit the context."""
    return service.answers(
        [prompt],
        [with_processors(sampling, body.given())],
        param=param,
        priority=body.priority,
        salt=body.cache_salt or "",
        timeout_s=body.timeout,
        ids=[body.rid] if body.rid else [],
    )


def refuse_fields(body: BaseModel, names: Iterable[str]) -> None:
    """Raises RequestError for the first of these fields that is given: it would change the answer, and is not
    supported."""
    for name in names:
        if getattr(body, name) not in (None, [], {}, ""):
            raise RequestError(f"{name} is not supported", param=name, code="unsupported_parameter")
