"""Calls: only the arguments asked for, in order, each listener apart from the others."""

from __future__ import annotations

from typing import Any

import pytest
from hook_plugins import Recorder, manager, record
from prometheus_client import Counter, Gauge

from core.config.loading import load_settings
from core.hooks import HookManager, public_settings
from core.interfaces.errors import ConfigError, PluginLoadError
from core.interfaces.hooks import HOOK_NAMES, HookPlugin, hookimpl
from core.registry.resolution import Choice


class Raises(HookPlugin):
    def __init__(self, ctx: Any = None, error: type[BaseException] = RuntimeError) -> None:
        super().__init__(ctx)
        self.error, self.calls = error, 0

    @hookimpl
    def core_engine_stopping(self) -> None:
        self.calls += 1
        raise self.error("no")

    @hookimpl
    def core_request_finished(self, request: Any) -> None:
        self.calls += 100


def test_nobody_listens() -> None:
    empty = HookManager()
    assert not any(empty.has(name) for name in HOOK_NAMES)
    empty.call("core_engine_stopping", reason="shutdown")


def test_order_is_that_of_the_choice_and_phases_are_kept() -> None:
    heard: list[str] = []

    def plugin(name: str, **phase: bool) -> Any:
        class Listener(HookPlugin):
            @hookimpl(**phase)
            def core_engine_stopping(self, reason: str) -> None:
                heard.append(name)

        return Listener(None)  # type: ignore[arg-type]

    hooks = manager(plugin("a"), plugin("b"), plugin("last", trylast=True), plugin("c"), plugin("first", tryfirst=True))
    hooks.call("core_engine_stopping", reason="shutdown")
    assert heard == ["first", "a", "b", "c", "last"]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, GeneratorExit])
def test_one_that_raises_is_logged_once_and_the_others_go_on(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Raises(error=error), Recorder()
    hooks = manager(bad, good)
    for _ in range(3):
        hooks.call("core_engine_stopping", reason="shutdown")
    assert bad.calls == 1
    assert good.of("stopping") == ["shutdown"] * 3
    assert len(caplog.messages) == 1
    assert "distribution dist0 1.0" in caplog.text
    assert "core_engine_stopping" in caplog.text
    hooks.call("core_request_finished", request=None)
    assert bad.calls == 101, "it is switched off for that hook only"


def test_the_last_one_that_raises_leaves_nobody_listening() -> None:
    hooks = manager(Raises())
    assert hooks.has("core_engine_stopping")
    hooks.call("core_engine_stopping", reason="shutdown")
    assert not hooks.has("core_engine_stopping")


def test_an_instance_with_bad_methods_is_refused() -> None:
    class Late(HookPlugin):
        def __init__(self, ctx: Any) -> None:
            @hookimpl
            def listener(engine: Any) -> None: ...

            self.core_engine_stopping = listener

    choice = Choice("hooks", "late", record("late", dist="plugin-late"), Late, "asked for")
    with pytest.raises(PluginLoadError, match=r"plugin-late 1.0.*core_engine_stopping"):
        HookManager.build([choice], {}, strict=True)


class TestConstruction:
    def choice(self, target: Any, **fields: Any) -> Choice:
        return Choice("hooks", "mine", record("mine", dist="plugin-mine", **fields), target, "asked for")

    def test_gets_its_own_section(self) -> None:
        class Listener(HookPlugin):
            @hookimpl
            def core_engine_stopping(self) -> None:
                found.append(dict(self.ctx.settings))

        found: list[Any] = []
        hooks = HookManager.build([self.choice(Listener)], {"mine": {"a": 1}, "other": {"b": 2}}, strict=True)
        hooks.call("core_engine_stopping", reason="")
        assert found == [{"a": 1}]

    def test_one_that_cannot_be_made(self, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(HookPlugin):
            def __init__(self, ctx: Any) -> None:
                raise OSError("no such host")

        choices = [self.choice(Broken), Choice("hooks", "good", record("good"), Recorder, "installed")]
        with pytest.raises(PluginLoadError, match=r"plugin-mine 1.0.*OSError: no such host"):
            HookManager.build(choices, {}, strict=True)
        hooks = HookManager.build(choices, {}, strict=False)
        assert hooks.has("core_engine_started"), "the other one listens"
        assert "plugin-mine" in caplog.text

    def test_wrong_settings_are_the_operators_mistake(self) -> None:
        choice = self.choice(Recorder, config="core.config.sections:SchedulerSettings")
        with pytest.raises(ConfigError, match="max_queued_requests"):
            HookManager.build([choice], {"mine": {"max_queued_requests": "many"}}, strict=False)


def test_settings_are_told_without_secrets_and_cannot_be_changed() -> None:
    settings = load_settings({"api_key": "hush", "max_n": 3, "plugins": {"x": {"token": "hush"}}}).settings
    shown = public_settings(settings)
    assert shown["server"]["max_n"] == 3
    assert "hush" not in str(shown)
    with pytest.raises(TypeError):
        shown["server"]["max_n"] = 4  # type: ignore[index]


def metrics_plugin(*names: str, swallow: bool = False) -> Any:
    class Metrics(HookPlugin):
        @hookimpl
        def core_metrics(self, registry: Any) -> None:
            for name in names:
                try:
                    Counter(name, "made for a test", registry=registry).inc()
                except PluginLoadError:
                    if not swallow:
                        raise

    return Metrics(None)  # type: ignore[arg-type]


class TestMetrics:
    def test_shown_from_every_plugin(self) -> None:
        text = manager(metrics_plugin("a_calls"), metrics_plugin("b_calls")).metrics().render().decode()
        assert "a_calls_total 1.0" in text
        assert "b_calls_total 1.0" in text

    def test_nobody_adds_any(self) -> None:
        assert HookManager().metrics().render() == b""

    @pytest.mark.parametrize("swallow", [False, True])
    @pytest.mark.parametrize(
        ("names", "problem"),
        [(("core_steps",), "dist1 1.0.*'core_steps.*core's"), (("a_calls",), "dist1 .*'a_calls.*dist0 1.0"),
         (("b", "b_total"), "dist1 .*'b.*twice")],
    )  # fmt: skip
    def test_names_that_are_taken(
        self, names: tuple[str, ...], problem: str, swallow: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        plugins = metrics_plugin("a_calls"), metrics_plugin(*names, swallow=swallow), metrics_plugin("c_calls")
        with pytest.raises(PluginLoadError, match=problem):
            manager(*plugins).metrics()
        text = manager(*plugins, strict=False).metrics().render().decode()
        assert text.count("a_calls_total 1.0") == 1
        assert "c_calls_total 1.0" in text
        assert "core_steps" not in text
        assert "dist1" in caplog.text

    def test_a_collector_that_raises_takes_only_its_own_away(self, caplog: pytest.LogCaptureFixture) -> None:
        class Metrics(HookPlugin):
            @hookimpl
            def core_metrics(self, registry: Any) -> None:
                Gauge("late", "raises when it is read", registry=registry).set_function(lambda: 1 / 0)

        found = manager(Metrics(None), metrics_plugin("b_calls")).metrics()  # type: ignore[arg-type]
        for _ in range(2):
            assert "b_calls_total 1.0" in found.render().decode()
        assert sum("are shown no more" in message for message in caplog.messages) == 1

    def test_a_listener_that_raises(self) -> None:
        class Metrics(HookPlugin):
            @hookimpl
            def core_metrics(self, registry: Any) -> None:
                Gauge("half", "registered before it raises", registry=registry)
                raise RuntimeError("no")

        text = manager(Metrics(None), metrics_plugin("b_calls")).metrics().render().decode()  # type: ignore[arg-type]
        assert "half" not in text
        assert "b_calls_total 1.0" in text
