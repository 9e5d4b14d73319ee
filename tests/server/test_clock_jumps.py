"""The wall clock is for dates that people read. When it jumps, nothing ends, waits or is let through for that."""

from __future__ import annotations

import ast
import itertools
import time
from pathlib import Path

import pytest

from core.testing.server import memory_server

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "core").rglob("*.py"), *(ROOT / "plugins").glob("*/*/src/**/*.py")])
WALL = ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today")
# Where a wall clock is read, and what for.
DATES = {
    "chat.py": "created", "completions.py": "created", "pooled.py": "created", "context.py": "created",
    "events.py": "completed_at", "routes.py": "created_at", "replies.py": "created_at", "loads.py": "timestamp",
    "template.py": "the day, for templates that write it", "spans.py": "where traces stand on a time line",
    "workload_report.py": "when a benchmark was taken",
}  # fmt: skip
YEAR_S = 365 * 86_400.0


def test_the_wall_clock_is_read_for_dates_only() -> None:
    found = {
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(WALL)
    }
    assert found <= DATES.keys(), f"read the monotonic clock: {sorted(found - DATES.keys())}"


async def test_requests_live_through_jumps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(
        '[[keys]]\nname = "a"\nkey = "secret-of-a"\nrequests_per_minute = 60\n'
        '[[keys]]\nname = "b"\nkey = "secret-of-b"\nrequests_per_minute = 1\n'
    )
    true_time = time.time
    jumps = itertools.cycle([0.0, YEAR_S, -YEAR_S, 10 * YEAR_S, -0.5])
    monkeypatch.setattr(time, "time", lambda: true_time() + next(jumps))
    headers = {"authorization": "Bearer secret-of-a", "x-request-timeout": "100"}
    async with memory_server(api_keys_file=str(keys), request_timeout_s=200.0) as server:
        body = {"prompt": "abc", "max_tokens": 40, "ignore_eos": True, "timeout": 150.0, "seed": 1}
        texts = set()
        for number in range(6):
            reply = await server.client.post(
                "/v1/completions", json=body | {"stream": number % 2 == 1}, headers=headers
            )
            assert reply.status_code == 200, reply.text
            assert reply.text.count("length") == 1
            if number % 2 == 0:
                texts.add(reply.json()["choices"][0]["text"])
        assert len(texts) == 1
        for expected in (200, 429):  # years pass in between, and no minute does
            late = await server.client.post(
                "/v1/completions", json=body, headers=headers | {"authorization": "Bearer secret-of-b"}
            )
            assert late.status_code == expected
        assert 0 < int(late.headers["retry-after"]) <= 60
        assert server.engine.alive
        assert (await server.client.get("/metrics", headers=headers)).status_code == 200
