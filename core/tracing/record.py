"""RequestRecord: what is known of one HTTP request while it runs. The running task's own is `current_request()`."""

from __future__ import annotations

import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

MAX_ID_LENGTH = 128
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=-]*")


@dataclass(frozen=True, slots=True)
class Generation:
    """One engine request that has ended. Times are `time.monotonic()` seconds.

    queue_s: it waited so long for its first step; None if it never had one. first_s, last_s: its first and last token
    came; None without one. finish_reason: "stop" | "length" | "abort" | "error".
    """

    arrival_s: float
    end_s: float
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int = 0
    generated_tokens: int = 0
    queue_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None


@dataclass(slots=True)
class RequestRecord:
    """id: of the request, in log lines, traces and the response's header. names: others that it is known by (the id in
    its reply, the client's `rid`). start_s: `time.monotonic()`; start_ns: the same moment since 1970. read_s: its body
    was there. trace_id: of its trace, if there is one. generations: engine requests that have ended; num_begun: how
    many were begun.
    """

    id: str
    start_s: float = field(default_factory=time.monotonic)
    start_ns: int = field(default_factory=time.time_ns)
    read_s: float | None = None
    names: set[str] = field(default_factory=set)
    trace_id: str = ""
    num_begun: int = 0
    generations: list[Generation] = field(default_factory=list)

    def known_as(self, name: str) -> bool:
        """Whether it is the request of this name."""
        return name == self.id or name in self.names


_current: ContextVar[RequestRecord | None] = ContextVar("core_request", default=None)
follow = _current.set
unfollow = _current.reset


def current_request() -> RequestRecord | None:
    """The request on whose behalf this task runs, if it is one's."""
    return _current.get()


def request_id(given: str | None) -> str:
    """`given` if it is a sane id: 1 to 128 letters, digits and ._:@/+=-, the first a letter or a digit. Else a new one,
    as other people's text must not get into logs and headers unseen."""
    if given is not None and len(given) <= MAX_ID_LENGTH and _SANE_ID.fullmatch(given):
        return given
    return uuid.uuid4().hex


def reply_id(prefix: str = "", given: str | None = None) -> str:
    """The id of a reply: `given` or a new one, behind `prefix`. The request can be aborted under this name."""
    name = prefix + (given or uuid.uuid4().hex)
    record = current_request()
    if record is not None:
        record.names.add(name)
    return name
