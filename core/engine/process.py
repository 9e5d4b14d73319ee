"""Main of the engine's child process: `python -m core.engine.process`.

The parent writes one PrepareProcess and one StartEngine (each a length, then msgpack) to standard input and keeps that
pipe open: its end means that the parent is gone, and the child leaves at once with all its descendants. Nothing of the
parent's `__main__` is imported.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from core.engine.collector import leave_started_objects
from core.engine.lifetime import EXIT_ORPHANED, die_with_parent, watch_parent
from core.engine.messages import Fatal, FromEngine, Progress, StartFailed, ToEngine
from core.engine.serve import serve
from core.engine.start import PrepareProcess, StartEngine, read_message
from core.engine.wire_errors import describe
from core.interfaces.errors import EngineError
from core.metrics.process import process_values
from core.tracing.log_lines import LogSink, log_to

EXIT_OK, EXIT_START_FAILED, EXIT_GAVE_UP = 0, 3, 4
LINGER_MS = 2000


class SocketChannel:
    """A `Channel` over a ZeroMQ socket."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._readable = [(socket, zmq.POLLIN)]
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._logger = logging.getLogger("core.engine")

    def receive(self, timeout_s: float) -> list[ToEngine]:
        messages: list[ToEngine] = []
        waiting = zmq.zmq_poll(self._readable, math.ceil(timeout_s * 1e3))
        while waiting:
            raw = self._socket.recv(zmq.NOBLOCK)
            waiting = zmq.zmq_poll(self._readable, 0)  # many times cheaper than an exception that says there is none
            try:
                messages.append(self._decoder.decode(raw))
            except Exception as error:  # RequestError too: SamplingParams checks itself while it is decoded
                self._logger.error("dropped a message of %d bytes that is none of ours: %s", len(raw), error)
        return messages

    def send(self, message: FromEngine) -> None:
        self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)


def load_factory(path: str) -> Callable[..., Any]:
    """Import "module:attribute"."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def main() -> int:
    """Argument: the factory, so that its imports run while the parent still resolves its settings."""
    parent = int(sys.argv[2])
    die_with_parent(parent)
    # Ctrl-C and SIGTERM reach the parent, which drains and then tells us to leave.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    prepare = read_message(sys.stdin.buffer, PrepareProcess)
    if prepare is None:
        return EXIT_ORPHANED
    for name, value in prepare.environment.items():
        os.environ.setdefault(name, value)
    failure: Exception | None = None
    factory: Callable[..., Any] | None = None
    try:
        factory = load_factory(sys.argv[1])
    except Exception as error:
        failure = error
    start = read_message(sys.stdin.buffer, StartEngine)
    if start is None:
        return EXIT_ORPHANED
    threading.Thread(target=watch_parent, args=(sys.stdin.buffer,), name="parent-watch", daemon=True).start()
    sink = LogSink()
    log_to(sink, start.log_format, "engine")
    logging.getLogger().setLevel(start.log_level.upper())
    context = zmq.Context[zmq.Socket[bytes]](1)
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.connect(start.address)
    channel = SocketChannel(socket)
    try:
        return _run(factory, failure, start, channel, sink)
    finally:
        socket.close()
        context.term()
        sink.close()


def _run(
    factory: Callable[..., Any] | None,
    failure: Exception | None,
    start: StartEngine,
    channel: SocketChannel,
    sink: LogSink,
) -> int:
    began_s = time.monotonic()
    try:
        if factory is None:
            raise EngineError(f"cannot import the engine factory {start.factory}") from failure

        def progress(phase: str, fraction: float) -> None:
            channel.send(Progress(phase, fraction))

        engine = factory(start, progress)
    except BaseException as error:
        cause = error.__cause__ if isinstance(error, EngineError) and error.__cause__ else None
        message, info = describe(error)
        if cause is not None:
            message = f"{message}: {type(cause).__name__}: {cause}"
        logging.getLogger("core.engine").debug("start failed", exc_info=True)
        channel.send(StartFailed(message, info.kind, info.hint))
        return EXIT_START_FAILED
    leave_started_objects()
    channel.send(msgspec.structs.replace(engine.hello, load_s=engine.hello.load_s or time.monotonic() - began_s))
    served = False
    try:
        served = serve(engine, channel, values=lambda: {**process_values(), "log_lines_lost": sink.num_lost})
    finally:
        try:
            engine.close()
        except Exception as error:
            channel.send(Fatal(f"closing the engine failed: {error}"))
    return EXIT_OK if served else EXIT_GAVE_UP


if __name__ == "__main__":
    code = main()
    # Skips interpreter teardown: device libraries take seconds there, and everything has been given back.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
