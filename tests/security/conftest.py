"""One real application over a mock model, for requests that are refused and leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.testing.server import MemoryServer, memory_server

KEY = "security-user-key-6f1d"
ADMIN_KEY = "security-admin-key-93ba"


@pytest.fixture(scope="module")
def server() -> Iterator[MemoryServer]:
    settings = {"log_requests": True, "log_requests_level": 3, "max_body_bytes": 1 << 20}
    with memory_server(api_key=KEY, admin_api_key=ADMIN_KEY, **settings) as running:
        yield running
