"""Bodies of admin routes. An empty body is an object without fields; unknown fields are refused."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.requests import Request

from core.server import bodies

MAX_BODY_BYTES = 1 << 20
M = TypeVar("M", bound=BaseModel)


class AdminBody(BaseModel):
    """Base of all."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class AbortBody(AdminBody):
    """rid: the `rid` of /generate, a reply's id, or the request's x-request-id; one or several."""

    rid: str | list[str] = ""
    abort_all: bool = False


class PauseBody(AdminBody):
    """mode: abort ends all requests; in_place keeps them as they are. `keep` is another word for that."""

    mode: Literal["abort", "in_place", "keep"] = "abort"


class ProfileBody(AdminBody):
    """output_dir: below --profile-dir. num_steps: ends by itself after so many. activities: CPU, GPU (any device)."""

    output_dir: str | None = Field(None, max_length=1024)
    num_steps: int | None = Field(None, ge=1, le=100_000)
    activities: list[Literal["CPU", "GPU"]] = Field(["CPU"], min_length=1)
    with_stack: bool = False
    record_shapes: bool = False
    profile_prefix: str = Field("core", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


class LoggingBody(AdminBody):
    """What is given is changed; the rest stays."""

    log_level: Literal["debug", "info", "warning", "error"] | None = None
    log_requests: bool | None = None
    log_requests_level: int | None = Field(None, ge=0, le=3)

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value


async def read(request: Request, model: type[M]) -> M:
    """The body as `model`. Raises RequestError naming the field."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return model()
    return await bodies.read(request, model, MAX_BODY_BYTES)
