"""Fields that no route models: accepted without effect, refused, or named. Nothing is dropped without a word."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from running import Running

from core.interfaces.errors import RequestError
from core.server.fields import HEADER, INERT, MAX_LOGGED, REFUSED, FieldRule, extras, header_value, judge

HI = [{"role": "user", "content": "Hi"}]
KNOWN_NOWHERE = {**dict.fromkeys(INERT, "x"), "beam_width": 1, "watermark": None}


@pytest.fixture(scope="module")
def shared(launch):
    with launch() as running:
        yield running


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {"messages": HI}),
        ("/v1/completions", {"prompt": "x"}),
        ("/generate", {"text": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [5]}),
    ],
)
def test_unknown_fields_are_named_in_a_header(shared: Running, route: str, body: dict[str, Any]) -> None:
    reply = httpx.post(shared.url + route, json={**body, **KNOWN_NOWHERE, "surprise": 1, "odd, name\n": 2})
    assert reply.status_code == 200, reply.text
    assert reply.headers[HEADER] == "surprise, odd? name?"
    assert HEADER not in httpx.post(shared.url + route, json={**body, **KNOWN_NOWHERE}).headers


def test_streams_name_them_too(shared: Running) -> None:
    reply = httpx.post(f"{shared.url}/v1/chat/completions", json={"messages": HI, "stream": True, "surprise": 1})
    assert reply.headers[HEADER] == "surprise"
    assert reply.text.endswith("data: [DONE]\n\n")


def test_fields_inside_objects(shared: Running) -> None:
    body = {"messages": HI, "stream": True, "stream_options": {"include_usage": True, "chunks": 3}}
    assert httpx.post(f"{shared.url}/v1/chat/completions", json=body).headers[HEADER] == "stream_options.chunks"
    body = {"text": "x", "sampling_params": {"temprature": 1}}
    assert httpx.post(f"{shared.url}/generate", json=body).headers[HEADER] == "sampling_params.temprature"


def test_a_server_may_refuse_them(launch) -> None:
    with launch(unknown_fields="refuse") as server:
        chat = f"{server.url}/v1/chat/completions"
        error = httpx.post(chat, json={"messages": HI, "temprature": 1}).json()["error"]
        assert (error["param"], error["code"]) == ("temprature", "unknown_parameter")
        assert "did you mean 'temperature'?" in error["message"]
        reply = httpx.post(f"{server.url}/generate", json={"text": "x", "sampling_params": {"zzz": 1}})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "sampling_params.zzz"
        assert httpx.post(chat, json={"messages": HI, **KNOWN_NOWHERE}).status_code == 200
        assert len(server.engine.requests) == 1


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_change_the_answer_is_refused(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        judge({name: "something"}, "warn")
    assert caught.value.param == name
    for neutral in (None, "", [], {}, *REFUSED[name]):
        assert judge({name: neutral}, "refuse") == []


def test_each_name_is_logged_once_and_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    class Body(BaseModel):
        model_config = ConfigDict(extra="allow")

    rule = FieldRule()
    with caplog.at_level(logging.WARNING, "core.server"):
        for _ in range(3):
            assert rule.apply(Body.model_validate({"surprise": 1}), "/x") == ["surprise"]
        assert [record.getMessage() for record in caplog.records if "surprise" in record.getMessage()].__len__() == 1
        for number in range(MAX_LOGGED + 50):
            rule.apply(Body.model_validate({f"made_up_{number}": 1}), "/x")
    assert len(caplog.records) == MAX_LOGGED


@given(st.lists(st.text(max_size=200), max_size=40))
def test_any_name_makes_a_header(names: list[str]) -> None:
    text = header_value(names)
    text.encode("ascii")
    assert not any(character < " " or character == "\x7f" for character in text)
    assert len(text) < 3000


def test_extras_of_nested_models() -> None:
    class Inner(BaseModel):
        model_config = ConfigDict(extra="allow")

    class Outer(BaseModel):
        model_config = ConfigDict(extra="allow")
        inner: Inner | None = None

    assert dict(extras(Outer.model_validate({"a": 1, "inner": {"b": 2}}))) == {"a": 1, "inner.b": 2}
