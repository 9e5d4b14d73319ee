"""Which hook plugins listen: all that work, none, or those that are named; and how a broken one shows."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hook_plugins import Recorder, record

from core.interfaces.errors import ConfigError, PluginClash, PluginLoadError, PluginNotFound
from core.interfaces.hooks import HookPlugin, hookimpl
from core.registry import Catalog
from core.registry.select_listeners import choose_hooks, choose_routes, listener_problem


class UnknownHook(HookPlugin):
    @hookimpl
    def core_token_done(self, token: int) -> None: ...


class UnknownArgument(HookPlugin):
    @hookimpl
    def core_request_finished(self, request: Any, engine: Any) -> None: ...


class Unmarked(HookPlugin):
    def core_engine_started(self, info: Any) -> None: ...


class Coroutine(HookPlugin):
    @hookimpl
    async def core_engine_started(self, info: Any) -> None: ...


class Wrapper(HookPlugin):
    @hookimpl(wrapper=True)
    def core_engine_started(self, info: Any) -> Any:
        yield


BROKEN = [
    (UnknownHook, "there is no hook core_token_done"),
    (UnknownArgument, "core_request_finished.*engine"),
    (Unmarked, "its core_engine_started is not marked @hookimpl"),
    (Coroutine, "its core_engine_started is a coroutine"),
    (Wrapper, "its core_engine_started is a generator"),
]


@pytest.mark.parametrize(("plugin", "problem"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_what_does_not_fit_the_hooks_is_refused_by_name(plugin: type, problem: str) -> None:
    catalog = Catalog.from_records([record("good", Recorder), record("bad", plugin, dist="plugin-bad")])
    with pytest.raises(PluginLoadError, match=f"hooks plugin 'bad' .distribution plugin-bad 1.0.*{problem}"):
        choose_hooks(["bad"], "host", catalog)
    chosen, rejected = choose_hooks(["auto"], "host", catalog)
    assert [choice.name for choice in chosen] == ["good"]
    assert [name for name, _ in rejected] == ["bad"]


def test_a_good_one_fits_as_class_and_as_instance() -> None:
    assert listener_problem(Recorder) == ""
    assert listener_problem(Recorder()) == ""


def test_fewer_arguments_fit() -> None:
    class Some(HookPlugin):
        @hookimpl
        def core_configure(self, process: str) -> None: ...

        @hookimpl
        def core_steps_done(self) -> None: ...

    assert listener_problem(Some) == ""


def test_auto_takes_what_works_and_warns_of_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    catalog = Catalog.from_records(
        [
            record("b", Recorder, dist="plugin-b"),
            record("a", Recorder, dist="plugin-a"),
            record("first", Recorder, capabilities={"priority": 1}),
            record("old", state="unavailable", reason="it needs numpy>=99", dist="plugin-old"),
            record("raises", dist="plugin-raises"),
            record("elsewhere", Recorder, requires_hardware=("chip",)),
        ]
    )
    with caplog.at_level(logging.WARNING, "core.registry"):
        chosen, rejected = choose_hooks(["auto"], "host", catalog)
    assert [choice.name for choice in chosen] == ["first", "a", "b"]
    assert dict(rejected) == {
        "old": "it needs numpy>=99",
        "raises": "importing nowhere:raises raised ModuleNotFoundError: No module named 'nowhere'",
        "elsewhere": "it needs chip, the device is host",
    }
    assert {line.split("(")[1].split(" 1.0")[0] for line in caplog.messages} == {
        "distribution plugin-old", "distribution plugin-raises", "distribution dummy"
    }  # fmt: skip
    caplog.clear()
    choose_hooks(["auto"], "host", catalog, warn=False)
    assert not caplog.messages


def test_named_ones_must_work() -> None:
    catalog = Catalog.from_records(
        [record("a", Recorder), record("old", state="unavailable", reason="it needs numpy>=99", dist="plugin-old")]
    )
    chosen, rejected = choose_hooks(["a", "dummy:a"], "host", catalog)
    assert [choice.name for choice in chosen] == ["a"]
    assert not rejected
    with pytest.raises(PluginLoadError, match=r"plugin-old 1\.0.*numpy>=99") as caught:
        choose_hooks(["a", "old"], "host", catalog)
    assert "--hooks none" in str(caught.value)
    with pytest.raises(PluginNotFound, match="'b'"):
        choose_hooks(["b"], "host", catalog)
    with pytest.raises(ConfigError, match="'auto' stands alone"):
        choose_hooks(["auto", "a"], "host", catalog)


@pytest.mark.parametrize("asked", [(), ("none",)])
def test_none(asked: tuple[str, ...]) -> None:
    catalog = Catalog.from_records([record("a", Recorder)])
    assert choose_hooks(asked, "host", catalog) == ((), [])
    assert choose_routes(asked, catalog) == ()


def test_two_of_one_name_are_told_apart_by_their_distribution() -> None:
    catalog = Catalog.from_records([record("a", Recorder, dist="one"), record("a", Recorder, dist="two")])
    chosen, rejected = choose_hooks(["auto"], "host", catalog)
    assert not chosen
    assert "also claimed by two; ask for one:a" in str(rejected)
    with pytest.raises(PluginClash, match=r"one 1\.0 and two 1\.0"):
        choose_hooks(["a"], "host", catalog)
    chosen, _ = choose_hooks(["two:a"], "host", catalog)
    assert chosen[0].record is not None
    assert chosen[0].record.distribution == "two"
