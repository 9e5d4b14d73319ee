"""The admin routes over a fake engine: what they ask of it, and what they refuse."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import Running

from core.interfaces.errors import EngineDead, EngineError


def post(server: Running, path: str, body: dict | None = None, status: int = 200) -> dict:
    reply = httpx.post(server.url + path, json=body)
    assert reply.status_code == status, reply.text
    made = reply.json()
    return made if status == 200 else made["error"]


@pytest.fixture
def profiled(launch: Any, tmp_path: Path) -> Iterator[Running]:
    with launch(profile_dir=str(tmp_path / "traces")) as running:
        yield running


def test_flush_waits_for_running_requests_as_long_as_it_is_told(server: Running) -> None:
    server.engine.busy_flushes = 1
    assert post(server, "/flush_cache", status=409)["code"] == "busy"
    server.engine.busy_flushes = 3
    assert post(server, "/flush_cache?timeout=10") == {"success": True}
    assert post(server, "/reset_prefix_cache") == {"success": True}
    assert server.engine.flushed == 2
    for wrong in ("x", "-1", "nan", "1e9"):
        assert post(server, f"/flush_cache?timeout={wrong}", status=400)["param"] == "timeout"


def test_abort_by_name_by_names_or_all(server: Running) -> None:
    assert post(server, "/abort_request", {"rid": "a"}) == {"success": True, "num_aborted": 0}
    post(server, "/abort_request", {"rid": ["a", "b"]})
    post(server, "/abort_request", {"abort_all": True})
    assert server.engine.aborts == [["a"], ["a", "b"], None]
    for wrong in ({}, {"rid": ""}, {"rid": []}, {"rid": "a", "abort_all": True}):
        assert post(server, "/abort_request", wrong, 400)["param"] == "rid"
    assert "rd" in post(server, "/abort_request", {"rd": "a"}, 400)["message"]


@pytest.mark.parametrize(
    ("path", "body", "aborts"),
    [
        ("/pause_generation", None, [None]),
        ("/pause_generation", {"mode": "abort"}, [None]),
        ("/pause_generation", {"mode": "in_place"}, []),
        ("/pause_generation", {"mode": "keep"}, []),
        ("/pause?mode=keep", None, []),
        ("/pause", None, [None]),
    ],
)
def test_pause_and_continue(server: Running, path: str, body: dict | None, aborts: list[None]) -> None:
    assert post(server, path, body)["paused"]
    assert server.engine.aborts == aborts
    ready = httpx.get(server.url + "/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "paused")
    assert httpx.get(server.url + "/health").status_code == 200
    assert httpx.get(server.url + "/server_info").json()["paused"] is True
    assert post(server, "/continue_generation") == {"success": True, "paused": False}
    assert httpx.get(server.url + "/ready").status_code == 200
    assert [op for op, _ in server.engine.controls] == ["pause", "resume"]


def test_modes_that_there_are_not(server: Running) -> None:
    assert post(server, "/pause_generation", {"mode": "retract"}, 400)["param"] == "mode"
    assert post(server, "/pause?mode=retract", status=400)["param"] == "mode"
    assert server.engine.controls == []


def test_profiles_go_below_the_configured_folder(profiled: Running, tmp_path: Path) -> None:
    body = {"output_dir": "run1", "num_steps": 5, "activities": ["CPU", "GPU"], "with_stack": True}
    assert post(profiled, "/start_profile", body) == {"success": True, "path": "/traces/one"}
    assert post(profiled, "/stop_profile") == {"success": True, "path": "/traces/one"}
    started, stopped = profiled.engine.controls
    assert started == (
        "start_profile",
        {
            "folder": str(tmp_path / "traces" / "run1"), "num_steps": 5, "activities": ["CPU", "GPU"],
            "with_stack": True, "record_shapes": False, "prefix": "core",
        },
    )  # fmt: skip
    assert stopped == ("stop_profile", {})
    post(profiled, "/start_profile")
    assert profiled.engine.controls[-1][1]["folder"] == str(tmp_path / "traces")


@pytest.mark.parametrize("folder", ["..", "/etc", "a/../../b", "\0", "link", "deep/" * 3000])
def test_profiles_go_nowhere_else(profiled: Running, tmp_path: Path, folder: str) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "link").symlink_to("/tmp")
    assert post(profiled, "/start_profile", {"output_dir": folder}, 400)["param"] == "output_dir"
    assert profiled.engine.controls == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_steps", 0), ("activities", ["RPD"]), ("activities", []), ("profile_prefix", "../x"), ("start_step", 3)],
)
def test_profiles_with_wrong_arguments(profiled: Running, name: str, value: Any) -> None:
    assert name in post(profiled, "/start_profile", {name: value}, 400)["message"]


def test_without_a_folder_no_profiles(server: Running) -> None:
    assert "--profile-dir" in post(server, "/start_profile", status=400)["message"]


def test_what_the_engine_refuses_is_a_conflict_and_a_dead_engine_is_away(
    profiled: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(op: str, **arguments: Any) -> dict:
        raise EngineError("a profile is being taken already", hint="end it")

    monkeypatch.setattr(profiled.engine, "control", refuse)
    assert "already" in post(profiled, "/start_profile", status=409)["message"]

    async def dead(op: str, **arguments: Any) -> dict:
        raise EngineDead("gone")

    monkeypatch.setattr(profiled.engine, "control", dead)
    assert post(profiled, "/stop_profile", status=503)["code"] == "engine_dead"


def test_logging_is_changed_in_both_processes(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("core")
    before = logger.level
    try:
        told = post(server, "/configure_logging", {"log_level": "WARNING", "log_requests": True})
        assert told == {"success": True, "log_level": "warning", "log_requests": True, "log_requests_level": 0}
        assert logger.level == logging.WARNING
        assert server.engine.controls == [("set_log_level", {"level": "warning"})]
        assert post(server, "/configure_logging", {"log_requests_level": 2})["log_requests_level"] == 2
        post(server, "/configure_logging", {"log_level": "info"})
        httpx.post(server.url + "/generate", json={"text": "hi"}, headers={"x-request-id": "q"})
        assert "request finished" in [record.getMessage() for record in caplog.records]
        post(server, "/configure_logging", {"log_requests": False})
        caplog.clear()
        httpx.post(server.url + "/generate", json={"text": "hi"})
        # What ended a moment ago may still be told; this request is not.
        paths = [record.fields["path"] for record in caplog.records if hasattr(record, "fields")]
        assert "/generate" not in paths
    finally:
        logger.setLevel(before)
    assert post(server, "/configure_logging", {"log_level": "loud"}, 400)["param"] == "log_level"
    assert post(server, "/configure_logging", {"log_requests_level": 4}, 400)["param"] == "log_requests_level"


def test_loads(server: Running) -> None:
    told = httpx.get(server.url + "/v1/loads").json()
    assert told["dp_rank_count"] == 1
    [load] = told["loads"]
    assert load["max_total_num_tokens"] == 63 * 16
    assert load["num_running_reqs"] == told["aggregate"]["total_running_reqs"] == 0
    assert "max_total_num_tokens" not in httpx.get(server.url + "/v1/loads?include=core").json()["loads"][0]
    text = httpx.get(server.url + "/v1/loads?format=prometheus").text
    assert 'core_load_num_running_reqs{model="tiny"} 0.0' in text
    for query, param in (("format=xml", "format"), ("dp_rank=1", "dp_rank"), ("include=core,spec", "include")):
        wrong = httpx.get(f"{server.url}/v1/loads?{query}")
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, param)


def test_health_generate_asks_an_idle_engine_for_one_token(server: Running) -> None:
    told = httpx.get(server.url + "/health_generate")
    assert (told.status_code, told.json()["generated"]) == (200, True)
    [request] = server.engine.requests
    assert (request.sampling.max_tokens, request.namespace.salt) == (1, "health_generate")
    server.engine.error_after = 0
    told = httpx.get(server.url + "/health_generate")
    assert (told.status_code, told.json()["problem"]) == (503, "the logits are not finite")


def test_health_generate_leaves_a_busy_and_a_paused_engine_alone(server: Running) -> None:
    gate = asyncio.run_coroutine_threadsafe(make_gate(server), server.loop).result(5)
    client = threading.Thread(target=httpx.post, args=(server.url + "/generate",), kwargs={"json": {"text": "x"}})
    client.start()
    until_s = time.monotonic() + 10
    while not server.engine.running and time.monotonic() < until_s:
        time.sleep(0.01)
    told = httpx.get(server.url + "/health_generate")
    assert (told.status_code, told.json()["generated"]) == (200, False)
    assert len(server.engine.requests) == 1
    server.loop.call_soon_threadsafe(gate.set)
    client.join(10)
    server.engine.paused = True
    told = httpx.get(server.url + "/health_generate")
    assert (told.status_code, told.json()["status"]) == (200, "paused")
    assert len(server.engine.requests) == 1


async def make_gate(server: Running) -> asyncio.Event:
    server.engine.gate = asyncio.Event()
    return server.engine.gate
