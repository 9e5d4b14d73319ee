"""Fields that no route models: accepted without effect, refused, or named. Nothing is dropped without a word."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any, Optional

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from running import Running

from core.interfaces.errors import RequestError
from core.server.anthropic.schemas import MessagesBody
from core.server.bodies import _named as named_mistake
from core.server.fields import HEADER, INERT, MAX_LOGGED, REFUSED, FieldRule, extras, header_value, judge
from core.server.schemas import CompletionBody

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


def test_extras_are_looked_for_where_models_may_be() -> None:
    class Inner(BaseModel):
        model_config = ConfigDict(extra="allow")

    class Outer(BaseModel):
        model_config = ConfigDict(extra="allow")
        plain: Inner = Inner()
        union: int | Inner | None = None
        annotated: Annotated[Inner | None, Field(description="x")] = None
        old: Optional[Inner] = None  # noqa: UP045
        many: list[Inner] = []
        number: int = 0

    inner = {"b": 2}
    body = {"plain": inner, "union": inner, "annotated": inner, "old": inner, "many": [inner], "number": 1, "c": 3}
    found = {"c": 3, "plain.b": 2, "union.b": 2, "annotated.b": 2, "old.b": 2}
    assert dict(extras(Outer.model_validate(body))) == found


def test_given_fields_are_those_that_the_client_typed() -> None:
    body = CompletionBody.model_validate_json(b'{"prompt": "x", "top_k": null, "max_tokens": 3, "strange": [1]}')
    assert body.given() == {"prompt": "x", "top_k": None, "max_tokens": 3, "strange": [1]}
    protocol = MessagesBody.model_validate_json(b'{"messages": [], "max_tokens": 3, "strange": 1}')
    assert protocol.given() == {"messages": [], "max_tokens": 3, "strange": 1}


class _EachListWhole(BaseModel):
    """The field `prompt` as it is without fail_fast."""

    prompt: str | list[str] | list[int] | list[list[int]]


PROMPTS = st.recursive(
    st.one_of(st.integers(-5, 5), st.text(max_size=3), st.none(), st.booleans(), st.floats(0, 1)),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@given(PROMPTS)
def test_a_wrong_prompt_is_named_as_if_every_item_were_read(prompt: Any) -> None:
    raw = json.dumps({"prompt": prompt}).encode()
    told: list[Any] = []
    for model in (_EachListWhole, CompletionBody):
        try:
            told.append(model.model_validate_json(raw, strict=True).prompt)  # type: ignore[attr-defined]
        except ValidationError as error:
            told.append(named_mistake(error, raw).message)
    assert told[0] == told[1]
