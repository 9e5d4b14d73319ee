"""Hooks: listeners to what core does. pluggy calls them; they return nothing and change nothing.

A hook plugin is a class, constructed once in each process that core runs (`ctx.settings` is its own section), with
methods of the names below marked `@hookimpl`. An implementation names only the arguments it wants, so a hook may grow
arguments without a new version. A listener that raises is logged with its distribution and switched off for that hook;
the engine goes on.

Choices (one implementation picked by name) are plugin kinds of their own; hooks never choose anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from core.interfaces.context import PluginContext

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PROJECT = "core"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Process = Literal["server", "engine"]  # one process plays both in `LLM` and `core generate`: "engine" then


@dataclass(frozen=True, slots=True)
class WeightsLoaded:
    """architecture: Hugging Face name. num_tensors, num_bytes: read from the checkpoint, 0 with random weights.
    seconds: wall time. ignored: (tensor name, reason) of those left out on purpose."""

    architecture: str
    num_tensors: int
    num_bytes: int
    seconds: float
    ignored: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class EngineStarted:
    """effective: what was chosen, as in /server_info. num_pages: KV pages of each cache group. load_s: start-up."""

    architecture: str
    effective: Mapping[str, str]
    num_pages: int
    page_size: int
    load_s: float


@dataclass(frozen=True, slots=True)
class RequestAdmitted:
    """A request got its first tokens of a step. id: core's own, unique while the engine lives. queue_s: time spent
    waiting. cached_tokens: of the prompt, taken from the prefix cache."""

    id: int
    num_prompt_tokens: int
    cached_tokens: int
    priority: int
    queue_s: float


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """finish_reason: "stop", "length", "abort" or "error". error: why, for "error". num_output_tokens: with the token
    that ended the text. A text that a stop string ends is an "abort" here: strings are looked for in the server."""

    id: int
    finish_reason: str
    num_prompt_tokens: int
    num_output_tokens: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepDone:
    """One engine step. num_tokens: computed, prefill and decode together. Times in seconds."""

    step: int
    num_seqs: int
    num_decodes: int
    num_tokens: int
    schedule_s: float
    device_s: float
    failed: bool = False


class HookSpecs:
    """The hooks. Where: which process calls it."""

    @hookspec
    def core_configure(self, settings: Mapping[str, Any], process: Process) -> None:
        """Both: once, before anything is built. settings: section -> name -> value of core's own settings, secrets left
        out; read only."""

    @hookspec
    def core_weights_loaded(self, report: WeightsLoaded) -> None:
        """Engine: after the last tensor."""

    @hookspec
    def core_engine_started(self, info: EngineStarted) -> None:
        """Engine: ready for requests."""

    @hookspec
    def core_engine_stopping(self, reason: str) -> None:
        """Engine: the last call, "shutdown" or what went wrong, also while starting. Requests that still ran have
        finished by then. Not called if the process is killed."""

    @hookspec
    def core_request_admitted(self, request: RequestAdmitted) -> None:
        """Engine: once a request, when it is first scheduled."""

    @hookspec
    def core_request_finished(self, request: RequestFinished) -> None:
        """Engine: once for every request that reached it, whatever the way out: those that were admitted, those
        that were aborted while they waited, and those that were refused."""

    @hookspec
    def core_steps_done(self, steps: Sequence[StepDone]) -> None:
        """Engine: the steps since the last call, about once a second and before it stops. Never once a token."""

    @hookspec
    def core_metrics(self, registry: CollectorRegistry) -> None:
        """Server: once; register prometheus collectors that /metrics is to show. Names of core's own begin with
        `core_`; a collector that clashes is an error of the plugin."""


HOOK_NAMES = tuple(name for name in vars(HookSpecs) if name.startswith(f"{PROJECT}_"))


class HookPlugin:
    """Convenient base of a hook plugin; any class with a constructor of this shape will do."""

    def __init__(self, ctx: PluginContext) -> None:
        self.ctx = ctx
