"""The engine behind a channel: take messages, turn the loop, send what comes of it. Used by process and thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from core.engine.engine import Engine
from core.engine.messages import (
    AddRequest,
    CancelRequest,
    Control,
    ControlDone,
    Fatal,
    FromEngine,
    Heartbeat,
    Shutdown,
    Stats,
    ToEngine,
)
from core.engine.wire_errors import describe

HEARTBEAT_S = 1.0
STALLED_POLL_S = 0.005


class Channel(Protocol):
    """The engine's end of a connection to one front end."""

    def receive(self, timeout_s: float) -> list[ToEngine]:
        """Every message that is there; waits up to `timeout_s` for the first. Malformed ones are dropped."""

    def send(self, message: FromEngine) -> None:
        """Queue a message. Never blocks."""


def serve(engine: Engine, channel: Channel, clock: Callable[[], float] = time.monotonic) -> bool:
    """Turn until Shutdown (returns True) or until the engine gives up (sends Fatal, returns False).

    Never spins: with nothing to do it sleeps in `receive`, up to a heartbeat's time.
    """
    draining = False
    progressed = True
    next_beat_s = clock()
    try:
        while True:
            if not engine.has_work:
                if draining:
                    return True
                timeout_s = max(0.0, next_beat_s - clock())
            else:
                timeout_s = 0.0 if progressed else STALLED_POLL_S
            for message in channel.receive(timeout_s):
                if isinstance(message, Shutdown):
                    if not message.drain:
                        return True
                    draining = True
                else:
                    _take(engine, channel, message)
            progressed = False
            if engine.has_work:
                before = engine.steps
                for outputs in engine.step() or ():
                    channel.send(outputs)
                    progressed = True
                progressed = progressed or engine.busy or engine.steps != before
            if clock() >= next_beat_s:
                next_beat_s = clock() + HEARTBEAT_S
                channel.send(Heartbeat(engine.steps, engine.has_work))
                channel.send(Stats(engine.stats()))
                engine.tell_steps()
    except Exception as error:
        logging.getLogger("core.engine").critical("the engine gives up", exc_info=True)
        message_text, info = describe(error)
        engine.tell_stopping(message_text, failed=True)  # a parent that reads the last word kills this process
        channel.send(Fatal(message_text, info.kind))
        return False


def _take(engine: Engine, channel: Channel, message: ToEngine) -> None:
    match message:
        case AddRequest():
            engine.submit(message)
        case CancelRequest():
            engine.cancel(message.id)
        case Control(call=call, op="stats"):
            channel.send(Stats(engine.stats(), call))
        case Control(call=call, op="flush_cache"):
            try:
                engine.flush_cache()
            except Exception as error:
                channel.send(ControlDone(call, False, describe(error)[0]))
            else:
                channel.send(ControlDone(call))
        case Control(call=call, op=op):
            channel.send(ControlDone(call, False, f"the engine knows no operation {op!r}"))
