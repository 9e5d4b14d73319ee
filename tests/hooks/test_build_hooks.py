"""What is told while an engine is built, in one process; and who resolves what."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hook_plugins import Recorder, record

from core.engine.build import build_engine
from core.engine.offline import OfflineEngine
from core.interfaces.errors import CapacityError, PluginLoadError, PluginMismatch
from core.interfaces.hooks import EngineStarted, HookPlugin, WeightsLoaded
from core.interfaces.routes import RoutePlugin
from core.llm import LLM
from core.registry import Catalog, PluginRecord
from core.registry.resolve import resolve
from core.testing.checkpoint import write_tiny_tokenizer
from core.testing.mock_engine import catalog_with, generate, resolve_in_process, write_config


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Every Recorder that is made."""
    made: list[Recorder] = []
    original = Recorder.__init__

    def remember(self: Recorder, ctx: Any = None) -> None:
        original(self, ctx)
        made.append(self)

    monkeypatch.setattr(Recorder, "__init__", remember)
    return made


def test_from_configure_to_stopping(tmp_path: Path, heard: list[Recorder]) -> None:
    catalog = catalog_with([record("listener", Recorder)])
    settings, resolution = resolve_in_process(write_config(tmp_path), catalog)
    assert resolution.effective["hooks"] == "listener"
    engine = OfflineEngine(build_engine(settings, resolution), 1)
    (listener,) = heard
    assert listener.order == ["configure", "weights", "started"]
    told, process = listener.of("configure")[0]
    assert (told["model"]["model"], process) == (str(tmp_path), "engine")
    assert listener.of("weights") == [WeightsLoaded(resolution.spec.architecture, 0, 0, 0.0)]
    info: EngineStarted = listener.of("started")[0]
    assert info.effective["hooks"] == "listener"
    assert info.num_pages == engine.engine.hello.num_pages
    with pytest.raises(TypeError):
        info.effective["hooks"] = "x"  # type: ignore[index]
    generate(engine, [[5, 6, 7], [8]])
    engine.engine.close()
    assert len(listener.of("admitted")) == len(listener.of("finished")) == 2
    assert listener.order[-1] == "stopping"


def test_none_makes_none(tmp_path: Path, heard: list[Recorder]) -> None:
    catalog = catalog_with([record("listener", Recorder)])
    settings, resolution = resolve_in_process(write_config(tmp_path), catalog, hooks="none")
    engine = build_engine(settings, resolution)
    assert not heard
    assert engine._listeners is None
    engine.close()


def test_a_start_that_fails_is_told(tmp_path: Path, heard: list[Recorder]) -> None:
    catalog = catalog_with([record("listener", Recorder)])
    settings, resolution = resolve_in_process(write_config(tmp_path), catalog, max_total_tokens=1)
    with pytest.raises(CapacityError):
        build_engine(settings, resolution)
    (listener,) = heard
    assert listener.order[-1] == "stopping"
    assert "KV cache would hold" in listener.of("stopping")[0]


def test_a_named_one_that_cannot_be_made_stops_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(HookPlugin):
        def __init__(self, ctx: Any) -> None:
            raise RuntimeError("no")

    catalog = catalog_with([record("listener", Broken, dist="plugin-broken")])
    with pytest.raises(PluginLoadError, match=r"plugin-broken 1\.0.*RuntimeError: no"):
        build_engine(*resolve_in_process(write_config(tmp_path), catalog, hooks="listener"))
    build_engine(*resolve_in_process(tmp_path, catalog)).close()
    assert "plugin-broken 1.0" in caplog.text


def test_llm(tmp_path: Path, heard: list[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = catalog_with([record("listener", Recorder)])
    monkeypatch.setattr(Catalog, "scan", lambda **_: catalog)
    write_tiny_tokenizer(write_config(tmp_path), vocab_size=300)
    with LLM(tmp_path, load_format="dummy", device="cpu", cpu_threads=1, max_total_tokens=512) as llm:
        llm.generate([[5, 6], [7, 8, 9]], {"max_tokens": 3, "ignore_eos": True})
    (listener,) = heard
    assert [told.finish_reason for told in listener.of("finished")] == ["length", "length"]
    assert listener.of("configure")[0][1] == "engine"
    assert listener.order[-1] == "stopping"


class TestLock:
    def test_a_child_that_lacks_a_listener_refuses(self, tmp_path: Path) -> None:
        listener, extra = record("listener", Recorder), record("extra", Recorder)
        settings, resolution = resolve_in_process(write_config(tmp_path), catalog_with([listener]))
        lock = resolution.lock()
        assert ("hooks", "listener") in {(plugin.kind, plugin.name) for plugin in lock.plugins}
        assert resolve(settings, catalog_with([listener]), lock).lock() == lock
        with pytest.raises(PluginMismatch, match=r"hooks dummy:listener 1\.0"):
            resolve(settings, catalog_with(), lock)
        with pytest.raises(PluginMismatch, match=r"hooks dummy:extra 1\.0: chosen here only"):
            resolve(settings, catalog_with([listener, extra]), lock)

    def test_a_child_checks_routes_without_importing_them(self, tmp_path: Path) -> None:
        class Routes(RoutePlugin):
            def router(self, server: Any) -> Any: ...

        def records(**fields: Any) -> list[PluginRecord]:
            return [PluginRecord("routes", "mine", "plugin-mine", "1.0", **fields)]

        folder = write_config(tmp_path)
        settings, resolution = resolve_in_process(folder, catalog_with(records(loaded=Routes)), routes="mine")
        assert resolution.routes[0].target is Routes
        there = resolve(settings, catalog_with(records(target="nowhere_at_all:Routes")), resolution.lock())
        assert there.routes[0].target is None
        assert "nowhere_at_all" not in sys.modules
        assert there.effective == resolution.effective
