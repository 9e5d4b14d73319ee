"""What a stretch of steps does beside computing: waits for the device, copies between host and device."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from core.runner.transfer import Transfer
from tests.gpu.engines import ON_CPU, synchronize

WARNING = "called a synchronizing CUDA operation"  # torch's; that it watches at all is another warning of its


@dataclass
class Waits:
    """places: where torch said that an operation waits for the device. calls: of `synchronize` functions by name.
    blocking: waits for events that had not passed."""

    places: list[str] = field(default_factory=list)
    calls: collections.Counter[str] = field(default_factory=collections.Counter)
    blocking: int = 0


@contextmanager
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Notes every wait for the device: by torch's own warnings, and by the calls that wait on purpose."""
    found = Waits()
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not ON_CPU:
            _patch(patch, found)
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if not ON_CPU:
                torch.cuda.set_sync_debug_mode("default")
    found.places += [
        f"{warning.filename}:{warning.lineno}: {str(warning.message)[:100]}"
        for warning in caught
        if WARNING in str(warning.message)
    ]


def _patch(patch: pytest.MonkeyPatch, found: Waits) -> None:
    plain_event, plain_stream, plain_device = (
        torch.cuda.Event.synchronize, torch.cuda.Stream.synchronize, torch.cuda.synchronize,
    )  # fmt: skip

    def of_event(self: Any) -> None:
        found.blocking += not self.query()
        found.calls["event"] += 1
        plain_event(self)

    def of_stream(self: Any) -> None:
        found.calls["stream"] += 1
        plain_stream(self)

    def of_device(device: Any = None) -> None:
        found.calls["device"] += 1
        plain_device(device)

    patch.setattr(torch.cuda.Event, "synchronize", of_event)
    patch.setattr(torch.cuda.Stream, "synchronize", of_stream)
    patch.setattr(torch.cuda, "synchronize", of_device)


@dataclass
class Copies:
    """Between host and device, as the driver saw them (0 on a CPU). kinds: its names, with numbers. asked_up: calls of
    core's, which on a CPU stand for copies to the device; a recorded step's are not among them."""

    asked_up: int = 0
    up: int = 0
    down: int = 0
    kinds: dict[str, int] = field(default_factory=dict)


@contextmanager
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    """Counts copies. `up` and `down` are known at its end."""
    found = Copies()
    with monkeypatch.context() as patch:
        for name in ("upload", "upload_into"):
            patch.setattr(Transfer, name, _counted(getattr(Transfer, name), found))
        if ON_CPU:
            yield found
            return
        from torch.profiler import ProfilerActivity, profile

        synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            yield found
            synchronize()
    for event in seen.key_averages():
        if event.key.startswith("Memcpy"):
            found.kinds[event.key] = event.count
            found.up += event.count * ("HtoD" in event.key)
            found.down += event.count * ("DtoH" in event.key)


def _counted(plain: Any, found: Copies) -> Any:
    def call(*args: Any) -> Any:
        found.asked_up += 1
        return plain(*args)

    return call
