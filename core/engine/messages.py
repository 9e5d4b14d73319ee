"""What crosses the boundary between a front end and an engine: typed, schema-checked, no pickle.

`ToEngine` and `FromEngine` are tagged unions encoded with msgpack. Arrays travel as raw little-endian bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from core.interfaces.params import PoolingParams, SamplingParams


class AddRequest(msgspec.Struct, tag="add", frozen=True):
    """One sample of one prompt. id: unique within the front end's life, chosen by the front end.
    token_ids: int32 bytes. namespace: Namespace.encode(). priority: higher runs earlier. tenant: whose request it is,
    for fairness between tenants; "" is nobody's. weight: that tenant's share. timeout_s: seconds after arrival_s at
    which the request ends with an error. pooling: it wants a vector, not a text. label: what people
    know the request by, for log lines; need not be unique."""

    id: int
    token_ids: bytes
    sampling: SamplingParams
    seed: int
    namespace: bytes = b""
    priority: int = 0
    arrival_s: float = 0.0
    tenant: str = ""
    weight: float = 1.0
    timeout_s: float | None = None
    pooling: PoolingParams | None = None
    label: str = ""


class CancelRequest(msgspec.Struct, tag="cancel", frozen=True):
    """Stop a request; unknown ids are ignored. The engine answers with finish reason "abort" unless it had
    finished already."""

    id: int


class Control(msgspec.Struct, tag="control", frozen=True):
    """Ask for something that is no generation. op: one of `core.engine.control.OPERATIONS`; arguments: its own."""

    call: int
    op: str
    arguments: dict[str, Any] = {}


class Shutdown(msgspec.Struct, tag="shutdown", frozen=True):
    """Finish what runs if `drain`, then leave."""

    drain: bool = False


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """First message of an engine: it is ready. Facts of the model and of what is in effect. device_total_bytes,
    device_free_bytes: the device's memory once everything is allocated. phases: seconds of each phase of the start."""

    architecture: str
    vocab_size: int
    context_length: int
    max_prompt_tokens: int
    num_pages: int
    page_size: int
    max_running_requests: int
    eos_token_ids: list[int]
    effective: dict[str, str]
    load_s: float = 0.0
    device_total_bytes: int = 0
    device_free_bytes: int = 0
    phases: dict[str, float] = {}


class Progress(msgspec.Struct, tag="progress", frozen=True):
    """Start-up goes on. phase: what is being done, for people. fraction: of this phase, 0 to 1."""

    phase: str
    fraction: float


class StartFailed(msgspec.Struct, tag="start_failed", frozen=True):
    """Start-up did not succeed; the text is for people. kind: class name in the CoreError tree."""

    error: str
    kind: str = "EngineError"
    hint: str | None = None


class Fatal(msgspec.Struct, tag="fatal", frozen=True):
    """Last message of an engine that gives up after it was ready."""

    error: str
    kind: str = "EngineError"


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """The machine-readable half of a request's error. kind: class name in the CoreError tree."""

    kind: str = "EngineError"
    hint: str | None = None
    param: str | None = None
    code: str | None = None
    status: int | None = None
    retry_after_s: int | None = None


class TopLogprobs(msgspec.Struct, frozen=True):
    """One token's log-probability and the best alternatives, descending."""

    logprob: float
    ids: list[int]
    logprobs: list[float]


class Extras(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one request gave beside its token. prompt_logprobs: entry i is of prompt token prompt_start + i; with the
    first token. hidden: float32 bytes [n, hidden_size], in order of positions. pooled: float32 bytes."""

    prompt_start: int = 0
    prompt_logprobs: list[TopLogprobs] | None = None
    hidden: bytes = b""
    hidden_size: int = 0
    pooled: bytes = b""


class StepOutputs(msgspec.Struct, tag="outputs", frozen=True):
    """What one step gave, for all requests of this front end: parallel arrays of n entries, one request at most
    once. A token that ends a text (end-of-text or a stop id) is included and `finish` says so.

    ids: int64 bytes [n]. tokens: int32 bytes [n] (-1: no token, only a finish). finish: uint8 bytes [n], index
    into FINISH_REASONS. first: entries of requests that give their first token: index into n -> cached prompt
    tokens. logprobs: index into n -> TopLogprobs. errors: index into n -> message; error_info: what kind of error.
    queue_s: for entries in `first`, seconds between arrival and the first step that computed something.
    extras: index into n -> Extras, of requests that asked for such.
    """

    ids: bytes
    tokens: bytes
    finish: bytes
    first: dict[int, int] = {}
    logprobs: dict[int, TopLogprobs] = {}
    errors: dict[int, str] = {}
    error_info: dict[int, ErrorInfo] = {}
    queue_s: dict[int, float] = {}
    extras: dict[int, Extras] = {}


class Stats(msgspec.Struct, tag="stats", frozen=True):
    """A snapshot, sent about once a second. values: metric name -> number."""

    values: dict[str, float]


class ControlDone(msgspec.Struct, tag="control_done", frozen=True):
    """Answer to a Control. values: what the operation gives back. error_info: set if it failed."""

    call: int
    values: dict[str, Any] = {}
    error: str = ""
    error_info: ErrorInfo | None = None


class Heartbeat(msgspec.Struct, tag="heartbeat", frozen=True):
    """The loop turns. steps: finished steps; busy: whether there is work."""

    steps: int
    busy: bool


FINISH_REASONS = ("", "stop", "length", "abort", "error")
ToEngine = AddRequest | CancelRequest | Control | Shutdown
FromEngine = Hello | Progress | StartFailed | Fatal | StepOutputs | Stats | ControlDone | Heartbeat
