"""Unmodified frameworks over the openai client, each in an environment of its own, against one server with the demo
model. Where an environment cannot be made (no package index), a test is skipped and says why."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.client_env import CLIENTS, NoEnvironmentError, run_client
from tests.e2e.process import ServerProcess

# The first run on a machine installs the clients.
pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.timeout(600)]
FOUND: dict[str, type] = {"city": str, "sure": bool}


def found_by(client: str, server: ServerProcess) -> dict[str, Any]:
    assert client in CLIENTS
    try:
        return run_client(client, server.url)
    except NoEnvironmentError as error:
        pytest.skip(str(error))


def fits(value: dict[str, Any]) -> bool:
    return {name: type(entry) for name, entry in value.items()} == FOUND and len(value["city"]) <= 20


def test_litellm(demo_server: ServerProcess) -> None:
    found = found_by("litellm", demo_server)
    assert "Paris" in found["whole"]
    assert found["streamed"] == found["whole"]
    assert found["tokens"][0] == found["tokens"][1] > 0
    assert "42" in found["awaited"]
    assert found["finish_reason"] == "tool_calls"
    assert found["call"] == ["get_weather", {"city": "Paris"}]
    assert "21" in found["used"]
    assert fits(found["held"])
    assert found["refused"] == "NotFoundError"


def test_langchain(demo_server: ServerProcess) -> None:
    found = found_by("langchain", demo_server)
    assert "Paris" in found["whole"]
    assert found["streamed"] == found["whole"]
    assert found["tokens"][0] == found["tokens"][1] > 0
    assert "42" in found["awaited"]
    assert found["finish_reason"] == "tool_calls"
    assert found["call"] == found["streamed_call"] == ["get_weather", {"city": "Paris"}]
    assert "21" in found["used"]
    assert found["held"].keys() == {"json_schema", "function_calling"}
    assert all(fits(value) for value in found["held"].values())


def test_pydantic_ai(demo_server: ServerProcess) -> None:
    found = found_by("pydantic_ai", demo_server)
    assert "Paris" in found["whole"]
    assert found["streamed"] == found["whole"]
    assert found["asked"] == ["Paris"]
    assert "21" in found["used"]
    assert found["held"].keys() == {"schema", "tool"}
    assert all(fits(value) for value in found["held"].values())


def test_instructor(demo_server: ServerProcess) -> None:
    found = found_by("instructor", demo_server)
    assert found["held"].keys() == found["streamed"].keys() == {"tools", "schema"}
    assert all(fits(value) for values in found.values() for value in values.values())
