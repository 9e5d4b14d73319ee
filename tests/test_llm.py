"""LLM: the same parameters and texts as over HTTP, without a server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent / "frontend"), str(Path(__file__).parent / "server")]

from fake_engine import FakeEngine, says  # noqa: E402
from made_tokenizers import byte_level_folder  # noqa: E402
from tiny_parsers import CallParser, ThinkParser  # noqa: E402

from core.config.sections import Settings  # noqa: E402
from core.engine.client import EngineRequest, TokenChunk  # noqa: E402
from core.frontend.chat import ChatRenderer  # noqa: E402
from core.frontend.parameters import OTHER_FIELDS, PARAMETERS, Dialect, build, spellings  # noqa: E402
from core.frontend.tokenizer import Tokenizer  # noqa: E402
from core.interfaces.errors import ConfigError, RequestError  # noqa: E402
from core.interfaces.params import SamplingParams  # noqa: E402
from core.llm import LLM  # noqa: E402
from core.server.schemas import ChatBody, CompletionBody  # noqa: E402

TEXT = "Hello, world 🙂!"
HI = [{"role": "user", "content": "Hi"}]


class FakeOffline:
    """OfflineEngine over the fake engine's chunks."""

    def __init__(self, fake: FakeEngine) -> None:
        self.fake = fake
        self.engine = SimpleNamespace(hello=fake.hello(), close=lambda: None)
        self.requests: list[EngineRequest] = []
        self.steps: list[int] = []

    def generate(self, requests: Sequence[EngineRequest], on_progress: Any = None) -> list[TokenChunk]:
        for index, request in enumerate(requests):
            self.requests.append(request)
            tokens = self.fake.script(request)[: request.sampling.max_tokens or 99]
            self.steps.append(0)
            for position, token in enumerate(tokens):
                self.steps[-1] += 1
                chunk = self.fake._chunk(request, token, position, len(tokens))
                if on_progress(index, chunk):
                    break
        return []


@pytest.fixture
def llm(tmp_path: Path) -> LLM:
    tokenizer = Tokenizer.load(byte_level_folder(tmp_path))
    engine = FakeOffline(FakeEngine(says(tokenizer, TEXT)))
    return LLM.from_engine(engine, ChatRenderer(tokenizer, CallParser(), ThinkParser()))


def test_generate(llm: LLM) -> None:
    ids = llm.tokenizer.encode("Once")
    one = llm.generate("Once", {"max_tokens": 50})
    many = llm.generate(["Once", ids], {"max_new_tokens": 50}, progress=True)
    for output in (*one, *many):
        assert (output.text, output.finish_reason, output.prompt_token_ids) == (TEXT, "stop", ids)
        assert output.token_ids[-1] == 2
    assert (len(one), len(many)) == (1, 2)
    assert llm.generate(ids)[0].prompt_token_ids == ids
    assert llm.generate([]) == []


def test_parameters_of_each_prompt(llm: LLM) -> None:
    outputs = llm.generate(["a", "b"], [SamplingParams(max_tokens=2, logprobs=1), {"stop": "wor", "max_tokens": 40}])
    assert (outputs[0].finish_reason, len(outputs[0].logprobs)) == ("length", 2)
    assert (outputs[1].text, outputs[1].completions[0].matched_stop, outputs[1].logprobs) == ("Hello, ", "wor", None)
    full = len(llm.tokenizer.encode(TEXT)) + 1
    assert llm._engine.steps[1] < full  # the stop string ended the request


def test_samples_have_seeds_of_their_own(llm: LLM) -> None:
    (output,) = llm.generate("a", {"n": 3, "seed": 5})
    assert len(output.completions) == 3
    assert [request.seed for request in llm._engine.requests] == [5, 6, 7]
    assert all(request.sampling.n == 1 for request in llm._engine.requests)


def test_chat(llm: LLM) -> None:
    llm._engine.fake.script = says(
        llm.tokenizer, '<think>hm</think>ok<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    )
    tools = [{"type": "function", "function": {"name": "f"}}]
    (output,) = llm.chat(HI, tools=tools)
    (completion,) = output.completions
    assert (completion.reasoning, completion.text, completion.finish_reason) == ("hm", "ok", "tool_calls")
    assert [(call.name, call.arguments) for call in completion.tool_calls] == [("f", "{}")]
    assert output.cached_tokens == len(output.prompt_token_ids) // 16 * 16
    assert len(llm.chat([HI, HI])) == 2
    assert llm._engine.requests[0].sampling.max_tokens is None
    llm.chat(HI, {"max_new_tokens": 3})
    assert llm._engine.requests[-1].sampling.max_tokens == 3


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (lambda llm: llm.generate([""]), "prompts[0]"),
        (lambda llm: llm.generate([[1], [400]]), "prompts[1]"),
        (lambda llm: llm.generate("x " * 500), "prompts[0]"),
        (lambda llm: llm.generate("x", {"temprature": 1}), "temprature"),
        (lambda llm: llm.generate("x", {"temperature": -1}), "temperature"),
        (lambda llm: llm.generate(["x", "y"], [{}]), "sampling_params"),
        (lambda llm: llm.chat([]), "messages"),
        (lambda llm: llm.chat([{"role": "user"}]), "messages[0].content"),
    ],
)
def test_mistakes_name_the_parameter(llm: LLM, call: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        call(llm)
    assert caught.value.param == param
    assert llm._engine.requests == []


def test_steps_are_larger_than_a_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the program says how large."""
    found: list[Settings] = []

    def build(settings: Settings, *_: Any, **__: Any) -> Any:
        found.append(settings)
        raise RuntimeError("seen")

    monkeypatch.setattr("core.engine.build.build_engine", build)
    for given, mode in (({}, "throughput"), ({"performance_mode": "interactivity"}, "interactivity")):
        with pytest.raises(RuntimeError, match="seen"):
            LLM(device="cpu", **given)
        assert found.pop().scheduler.performance_mode == mode
    assert Settings().scheduler.performance_mode is None


def test_unknown_setting() -> None:
    with pytest.raises(ConfigError, match="contxt_length"):
        LLM("nowhere", contxt_length=5)


# One table


VALUES: dict[str, Any] = {
    "max_tokens": 7, "min_tokens": 2, "temperature": 0.5, "top_p": 0.4, "top_k": 3, "min_p": 0.1,
    "frequency_penalty": 0.2, "presence_penalty": 0.3, "repetition_penalty": 1.1, "logit_bias": {3: 1.0},
    "allowed_token_ids": (5, 6), "bad_words": ("y",),
    "stop": ("x",), "stop_regex": ("y+",),
    "stop_token_ids": (4,), "ignore_eos": True, "include_stop_str_in_output": True,
    "skip_special_tokens": False, "seed": 11, "n": 2,
}  # fmt: skip


def test_the_table_covers_every_parameter() -> None:
    assert {p.field for p in PARAMETERS} | OTHER_FIELDS == set(SamplingParams.__struct_fields__)
    assert set(VALUES) == {p.field for p in PARAMETERS}
    assert all(VALUES[f] != getattr(SamplingParams(), f) for f in VALUES)


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda p: p.field)
def test_every_spelling_reaches_the_engine(llm: LLM, dialect: Dialect, parameter: Any) -> None:
    """HTTP bodies, native parameters and LLM: each spelling of each parameter sets the same field."""
    value = VALUES[parameter.field]
    shown = {str(k): v for k, v in value.items()} if isinstance(value, dict) else value
    shown = list(shown) if isinstance(shown, tuple) else shown
    body = {Dialect.CHAT: ChatBody, Dialect.COMPLETIONS: CompletionBody}.get(dialect)
    for spelling in parameter.spellings(dialect):
        assert getattr(build({spelling: shown}, dialect), parameter.field) == value
        if body is not None:
            assert spelling in body.model_fields
        elif dialect is Dialect.NATIVE:
            llm.generate("x", {spelling: shown, **({"max_tokens": 9} if parameter.field == "min_tokens" else {})})
            request = llm._engine.requests[-1]
            got = {"seed": request.seed, "n": len(llm._engine.requests)}.get(
                parameter.field, getattr(request.sampling, parameter.field)
            )
            if parameter.field == "n":
                llm._engine.requests.clear()
            if parameter.field == "stop_token_ids":
                assert set(value) <= set(got)
            else:
                assert got == value


def test_no_two_parameters_share_a_name() -> None:
    for dialect in Dialect:
        names = [name for parameter in PARAMETERS for name in parameter.spellings(dialect)]
        assert len(names) == len(set(names)) == len(spellings(dialect))
