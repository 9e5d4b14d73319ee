"""What the hook writes, the command reads."""

from __future__ import annotations

from pathlib import Path

from example_hooks.commands import app
from example_hooks.listener import RequestLog
from example_hooks.settings import Options
from typer.testing import CliRunner

from core.interfaces.context import PluginContext
from core.interfaces.hooks import RequestFinished


def test_log_and_summary(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    log = RequestLog(PluginContext(settings=Options(path=path)))
    log.core_request_finished(RequestFinished(1, "stop", 10, 5))
    log.core_request_finished(RequestFinished(2, "length", 10, 7))
    assert not path.exists()  # nothing is written while the engine waits
    log.core_steps_done()
    log.core_request_finished(RequestFinished(3, "stop", 1, 1))
    log.core_engine_stopping()
    done = CliRunner().invoke(app, ["summary", str(path)])
    assert done.output == "3 requests (1 length, 2 stop), 13 tokens\n"


def test_no_path_no_file(tmp_path: Path) -> None:
    log = RequestLog(PluginContext(settings=Options()))
    log.core_request_finished(RequestFinished(1, "stop", 10, 5))
    log.core_engine_stopping()


def test_another_file_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("[1]")
    for name in ("other", "nothing"):
        done = CliRunner().invoke(app, ["summary", str(tmp_path / name)])
        assert done.exit_code == 2
        assert "is no log of requests" in done.output
