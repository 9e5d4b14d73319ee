"""Log lines: their shape, and that nobody who logs is held up or hurt by where they go."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.tracing.log_lines import JsonLines, LogFormat, LogSink, SinkHandler, TextLines, log_to
from core.tracing.record import RequestRecord, follow, reply_id, request_id, unfollow


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.Logger("core.test")
    yield made
    for handler in made.handlers:
        assert isinstance(handler, SinkHandler)
        handler.sink.close()


def lines_of(logger: logging.Logger, path: Path, form: LogFormat) -> LogSink:
    sink = LogSink(os.open(path, os.O_CREAT | os.O_WRONLY))
    logger.addHandler(SinkHandler(sink, form, "server"))
    return sink


def test_json_lines_have_the_request_and_whatever_the_line_is_about(logger: logging.Logger, tmp_path: Path) -> None:
    sink = lines_of(logger, tmp_path / "log", "json")
    logger.info("before %d", 1)
    record = RequestRecord("req-1", trace_id="ab" * 16)
    token = follow(record)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("it failed", extra={"fields": {"status": 500, "odd": Path("/x")}})
    unfollow(token)
    logger.error("does not fit %d", "text")
    sink.close()
    plain, failed = (json.loads(line) for line in (tmp_path / "log").read_text().splitlines()[:2])
    assert (plain["level"], plain["logger"], plain["process"], plain["message"]) == (
        "info", "core.test", "server", "before 1",
    )  # fmt: skip
    assert "request_id" not in plain
    assert plain["time"].endswith("Z")
    assert (failed["request_id"], failed["trace_id"], failed["status"], failed["odd"]) == (
        "req-1", "ab" * 16, 500, "/x",
    )  # fmt: skip
    assert "ValueError: two\nlines" in failed["exception"]
    assert "does not fit" in (tmp_path / "log").read_text().splitlines()[2]
    assert sink.num_lost == 0


def test_text_lines_name_the_request(logger: logging.Logger, tmp_path: Path) -> None:
    sink = lines_of(logger, tmp_path / "log", "text")
    token = follow(RequestRecord("req-2"))
    logger.warning("slow", extra={"fields": {"status": 200, "text": "a\nb"}})
    unfollow(token)
    sink.close()
    assert (tmp_path / "log").read_text().endswith(' WARNING core.test: [req-2] slow status=200 text="a\\nb"\n')


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_counted_and_hurts_nobody(logger: logging.Logger) -> None:
    sink = LogSink(os.open("/dev/full", os.O_WRONLY))
    logger.addHandler(SinkHandler(sink, "text", "server"))
    for _ in range(20):
        logger.error("lost")
    sink.close()
    assert sink.num_failed == sink.num_lost == 20


def test_a_closed_pipe_is_counted_and_hurts_nobody(logger: logging.Logger) -> None:
    read, write = os.pipe()
    os.close(read)
    sink = LogSink(write)
    logger.addHandler(SinkHandler(sink, "json", "server"))
    logger.error("lost")
    sink.close()
    assert sink.num_failed == 1


def test_a_reader_that_stands_still_holds_nobody_up(logger: logging.Logger) -> None:
    read, write = os.pipe()
    sink = LogSink(write, capacity=10)
    logger.addHandler(SinkHandler(sink, "text", "server"))
    for _ in range(2000):  # more than a pipe and the queue hold; without the queue this would never return
        logger.error("x" * 500)
    sink.close(timeout_s=0.05)
    assert sink.num_dropped > 1000
    os.close(read)  # the writer's thread gets its error and ends


def test_handlers_replace_each_other() -> None:
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    sinks = LogSink(2), LogSink(2)
    try:
        for sink in sinks:
            log_to(sink, "text", "server")
        own = [handler for handler in root.handlers if isinstance(handler, SinkHandler)]
        assert [handler.sink for handler in own] == [sinks[1]]
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        for sink in sinks:
            sink.close()


@pytest.mark.parametrize("given", ["abc", "A-1_b.c:d/e@f+g=", "x" * 128, "0af7651916cd43dd8448eb211c80319c"])
def test_sane_ids_are_kept(given: str) -> None:
    assert request_id(given) == given


@pytest.mark.parametrize(
    "given", [None, "", "x" * 129, "a b", "a\nb", "a\r\nset-cookie: x", "-rf", "ä", "<script>", 'a"b', "a\x00"]
)
def test_other_ids_are_replaced(given: str | None) -> None:
    made = request_id(given)
    assert made != given
    assert len(made) == 32
    assert made != request_id(given)


def test_replies_name_their_request() -> None:
    record = RequestRecord("r")
    token = follow(record)
    made = reply_id("chatcmpl-")
    assert reply_id(given="mine") == "mine"
    unfollow(token)
    assert record.known_as("r")
    assert record.known_as("mine")
    assert record.known_as(made)
    assert not record.known_as("other")
    assert reply_id("cmpl-").startswith("cmpl-")  # outside of any request


def test_formatters_take_lines_without_fields() -> None:
    record = logging.LogRecord("core", logging.INFO, "", 0, "hello", None, None)
    assert TextLines().format(record).endswith("INFO core: hello")
    assert json.loads(JsonLines("engine").format(record))["process"] == "engine"


def test_without_traces_opentelemetry_is_not_imported() -> None:
    # The web framework may import the API by itself where it is installed; the SDK is what costs.
    code = (
        "import core.server.app, core.server.main, core.engine.process, core.tracing.spans, sys;"
        "assert not [n for n in sys.modules if n.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
