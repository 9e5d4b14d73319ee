"""Log lines as text or JSON, written by a thread: a full disk, a closed or a stuck pipe never hold up who logs."""

from __future__ import annotations

import datetime
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from core.tracing.record import current_request

LogFormat = Literal["text", "json"]
CAPACITY = 10_000  # lines that may wait for a slow reader
CLOSE_TIMEOUT_S = 1.0
_MAX_WRITE = 1 << 16
_encode = msgspec.json.Encoder(enc_hook=str).encode


class LogSink:
    """Takes lines and writes them to a file descriptor in its own thread. Never blocks, never raises.

    fd: standard error by default. num_failed: writes that the system refused. num_dropped: lines for which there was no
    room, as nobody takes those before them.
    """

    def __init__(self, fd: int | None = None, capacity: int = CAPACITY) -> None:
        self._fd = standard_error() if fd is None else fd
        self._lines: queue.Queue[str | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self.num_failed = 0
        self.num_dropped = 0
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue a line, without its end."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.num_dropped += 1

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Wait until what was queued is written, but no longer than `timeout_s`."""
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    @property
    def num_lost(self) -> int:
        """Lines and writes that came to nothing."""
        return self.num_failed + self.num_dropped

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            self._put_out(f"{line}\n".encode(errors="backslashreplace"))

    def _put_out(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data[:_MAX_WRITE]) :]
        except OSError:
            self.num_failed += 1


class SinkHandler(logging.Handler):
    """Formats at once (what a line is about may change), and leaves the rest to the sink."""

    def __init__(self, sink: LogSink, form: LogFormat, process: str) -> None:
        super().__init__()
        self.sink = sink
        self.setFormatter(JsonLines(process) if form == "json" else TextLines(process))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # a message that does not fit its arguments
            line = f"{record.levelname} {record.name}: {record.msg!r} {record.args!r}"
        self.sink.write(line)


class TextLines(logging.Formatter):
    """`time level logger: [request id] message key=value ...`; `[rank 1]` comes first in a process of that name."""

    def __init__(self, process: str = "") -> None:
        self._about = f"[{process}] " if process.startswith("rank ") else ""
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(about)s%(message)s%(told)s")

    def format(self, record: logging.LogRecord) -> str:
        request = current_request()
        record.about = self._about + (f"[{request.id}] " if request is not None else "")
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        record.told = "".join(f" {name}={_encode(value).decode()}" for name, value in fields.items())
        return super().format(record)


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, process, message; request_id and trace_id of the request at hand;
    exception; and the line's own fields. process: "server", "engine", or "rank 1" and so on of an engine
    of several ranks."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "message": record.getMessage(),
        }
        request = current_request()
        if request is not None:
            line["request_id"] = request.id
            if request.trace_id:
                line["trace_id"] = request.trace_id
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        line |= getattr(record, "fields", {})
        return _encode(line).decode()


def standard_error() -> int:
    """Its file descriptor, also where Python has no object for it."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return 2


def log_to(sink: LogSink, form: LogFormat, process: str) -> SinkHandler:
    """Send this process's whole log there; handlers of this kind from before are replaced."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, SinkHandler)]:
        root.removeHandler(handler)
    handler = SinkHandler(sink, form, process)
    root.addHandler(handler)
    logging.captureWarnings(True)
    return handler
