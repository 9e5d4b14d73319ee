"""The parameters that the page offers, against what a request may really have."""

from __future__ import annotations

from typing import Any

import pytest

from core.frontend.parameters import Dialect, build
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams
from core.server.page_route import FOLDER, RANGES, TYPES, parameter_table
from core.server.schemas import ChatBody

TABLE = {entry["name"]: entry for entry in parameter_table()}
RANGED = [entry for entry in TABLE.values() if "minimum" in entry]


def taken(name: str, value: Any) -> bool:
    try:
        build({name: value}, Dialect.CHAT)
    except RequestError as error:
        if error.param != name:
            raise
        return False
    return True


def test_every_parameter_is_a_field_of_a_chat_completion() -> None:
    assert TABLE.keys() < ChatBody.model_fields.keys()
    assert {"temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "stop", "logit_bias"} <= TABLE.keys()
    assert "n" not in TABLE
    assert RANGES.keys() <= TABLE.keys()


@pytest.mark.parametrize("entry", RANGED, ids=lambda entry: entry["name"])
def test_ranges_are_those_that_are_checked(entry: dict[str, Any]) -> None:
    name, least, most = entry["name"], entry["minimum"], entry.get("maximum")
    step = 1 if entry["kind"] == "integer" else 0.01
    assert taken(name, least) is not entry["exclusive_minimum"]
    assert taken(name, least + step) or name == "top_k"  # 0 is between off and the first that counts
    if most is not None:
        assert taken(name, most)
    if name == "seed":  # narrower than the server's: whole numbers that a browser keeps exactly
        return
    assert not taken(name, least - step)
    if most is not None:
        assert not taken(name, most + step)


def test_defaults_are_those_of_a_request_without_the_field() -> None:
    defaults = SamplingParams()
    for name, entry in TABLE.items():
        assert entry["default"] == getattr(defaults, name)


def test_the_page_is_small_and_nothing_in_it_comes_from_elsewhere() -> None:
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert {path.suffix for path in files} <= TYPES.keys()
    assert sum(path.stat().st_size for path in files) < 80_000
    for path in files:
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        for forbidden in (
            "http://",
            "https://",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ):
            assert forbidden not in text, f"{path.name}: {forbidden}"
