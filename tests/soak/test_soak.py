"""The short form of `make soak`: every fault once, with a few seconds of load."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.e2e.process import ServerProcess
from tests.soak.soak import FLAGS, keys_file, run


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_left_after_load_and_faults(tmp_path: Path) -> None:
    server = ServerProcess(None, tmp_path / "server.log", *FLAGS, "--api-keys-file", str(keys_file(tmp_path)))
    try:
        server.wait_ready()
        report = asyncio.run(run(server, seed=7, warm_up_s=6, load_s=6))
    finally:
        server.stop()
    print(report.table())
    assert not report.problems
    assert report.num_requests > 300
    told = json.loads(report.json())
    assert told["num_requests"] == sum(sum(route["statuses"].values()) for route in told["routes"].values())
