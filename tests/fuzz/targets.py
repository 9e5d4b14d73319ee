"""Functions of any bytes that may raise what users are told, and nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

from pydantic import ValidationError

from core.frontend.template import ChatTemplate
from core.interfaces.errors import CheckpointError, RequestError
from core.server import bodies
from core.server.request_log import masked
from core.server.schemas import ChatBody, CompletionBody, GenerateBody, TokenizeBody

CHAT = [{"role": "user", "content": "Hi", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1]}}}]}]
CONTENTS = "{% for m in messages %}{{ m.role }}:{{ m.content|trim }}{{ m|tojson }}{% endfor %}{{ extra }}"


def request_body(raw: bytes) -> None:
    """Any bytes as a request's body: read, or refused with a message that fits into an error."""
    for model in (ChatBody, CompletionBody, GenerateBody, TokenizeBody):
        try:
            model.model_validate_json(raw, strict=True)
        except ValidationError as error:
            told = bodies._named(error, raw)
            assert isinstance(told, RequestError)
            assert told.message
            json.dumps(told.message)


def template(raw: bytes) -> None:
    """Any text as a checkpoint's chat template."""
    with contextlib.suppress(CheckpointError, RequestError):
        ChatTemplate({"default": raw.decode(errors="replace")}, {}).render(CHAT)


def template_input(raw: bytes) -> None:
    """Any JSON as what a request gives to a template."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = raw.decode(errors="surrogateescape")
    with contextlib.suppress(RequestError):
        ChatTemplate({"default": CONTENTS}, {}).render([{"role": "user", "content": value}], variables={"extra": value})


def logged(raw: bytes) -> None:
    """Any JSON in the request log: no value of a secret's name is left."""
    try:
        body = {"api_key": json.loads(raw), "kept": json.loads(raw)}
        shown = masked(body)
    except (ValueError, RecursionError):
        return
    assert shown["api_key"] == "***"


TARGETS: dict[str, Callable[[bytes], None]] = {
    "request_body": request_body, "template": template, "template_input": template_input, "logged": logged,
}  # fmt: skip
