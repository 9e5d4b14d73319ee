"""The engine behind a channel: take messages, turn the loop, send what comes of it. Used by process and thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from core.engine.control import EngineControl
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
    StepOutputs,
    ToEngine,
)
from core.engine.wire_errors import describe
from core.metrics.process import process_values

HEARTBEAT_S = 1.0
STALLED_POLL_S = 0.005
REFUSALS = ("RequestError", "Overloaded")
logger = logging.getLogger("core.engine")


class Channel(Protocol):
    """The engine's end of a connection to one front end."""

    def receive(self, timeout_s: float) -> list[ToEngine]:
        """Every message that is there; waits up to `timeout_s` for the first. Malformed ones are dropped."""

    def send(self, message: FromEngine) -> None:
        """Queue a message. Never blocks."""


def serve(
    engine: Engine,
    channel: Channel,
    clock: Callable[[], float] = time.monotonic,
    values: Callable[[], Mapping[str, float]] = process_values,
) -> bool:
    """Turn until Shutdown (returns True) or until the engine gives up (sends Fatal, returns False).

    Never spins: with nothing to do it sleeps in `receive`, up to a heartbeat's time.

    values: metric values beside the engine's own.
    """
    control = EngineControl(engine)
    labels: dict[int, str] = {}
    draining = False
    progressed = True
    next_beat_s = clock()
    try:
        while True:
            if not engine.has_work:
                if draining:
                    return True
                timeout_s = max(0.0, next_beat_s - clock())
            elif progressed:
                timeout_s = 0.0
            else:
                timeout_s = max(0.0, next_beat_s - clock()) if _stands(engine) else STALLED_POLL_S
            for message in channel.receive(timeout_s):
                if isinstance(message, Shutdown):
                    if not message.drain:
                        return True
                    draining = True
                    engine.paused = False
                else:
                    _take(engine, control, channel, message, labels)
            progressed = False
            if engine.has_work:
                before = engine.steps
                for outputs in engine.step() or ():
                    if labels and outputs.finish.strip(b"\0"):
                        _forget(labels, outputs)
                    channel.send(outputs)
                    progressed = True
                engine.settle()
                progressed = progressed or engine.busy or engine.steps != before
                control.turned()
            if clock() >= next_beat_s:
                next_beat_s = clock() + HEARTBEAT_S
                engine.check()
                channel.send(Heartbeat(engine.steps, engine.has_work and not _stands(engine)))
                channel.send(Stats({**engine.stats(), **values()}))
                engine.tell_steps()
    except Exception as error:
        logger.critical("the engine gives up", exc_info=True)
        message_text, info = describe(error)
        engine.tell_stopping(message_text, failed=True)  # a parent that reads the last word kills this process
        channel.send(Fatal(message_text, info.kind))
        return False
    finally:
        control.close()


def _stands(engine: Engine) -> bool:
    """Whether nothing moves because somebody wants it so."""
    return engine.paused and not engine.busy


def _take(engine: Engine, control: EngineControl, channel: Channel, message: ToEngine, labels: dict[int, str]) -> None:
    match message:
        case AddRequest():
            if message.label:
                labels[message.id] = message.label
            engine.submit(message)
        case CancelRequest():
            engine.cancel(message.id)
        case Control(call=call, op=op, arguments=arguments):
            try:
                values = control.run(op, arguments)
            except Exception as error:
                text, info = describe(error)
                channel.send(ControlDone(call, error=text, error_info=info))
            else:
                channel.send(ControlDone(call, values))


def _forget(labels: dict[int, str], outputs: StepOutputs) -> None:
    """Requests have ended; those that failed are named as people know them."""
    ids = np.frombuffer(outputs.ids, "<i8").tolist()
    for index, (request_id, finish) in enumerate(zip(ids, outputs.finish, strict=True)):
        if not finish:
            continue
        label = labels.pop(request_id, None)
        # Refusals (a full queue, a prompt that does not fit) are the client's to know.
        info = outputs.error_info.get(index)
        if label is not None and index in outputs.errors and (info is None or info.kind not in REFUSALS):
            logger.error("request %s failed: %s", label, outputs.errors[index])
