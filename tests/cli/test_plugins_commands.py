"""`core plugins list`, `core plugins explain` and `core config show`: what they say, and their JSON, frozen."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.cli import main as cli
from core.interfaces.kinds import KINDS
from core.registry import Catalog

sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))
try:
    import registry_fakes as fakes
finally:
    del sys.path[0]

OPTIONS = "from pydantic import BaseModel, SecretStr\n" + (
    "class Options(BaseModel):\n    splits: int = 2\n    word: SecretStr | None = None\n    name: str | None = None\n"
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CORE_"):
            monkeypatch.delenv(name)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*args: str) -> tuple[int, str, str]:
        code = cli.main(list(args))
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Catalog]:
    """use(*records): the commands see a small complete set of plugins in which these replace or are added."""

    def install(*changed: Any) -> Catalog:
        catalog = fakes.swap(fakes.records(), *changed)
        monkeypatch.setattr("core.registry.catalog.Catalog.scan", lambda **_: catalog)
        return catalog

    return install


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(fakes.write_checkpoint(tmp_path / "c"))


@pytest.fixture
def options_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "plugin_opts.py").write_text(OPTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("plugin_opts", None)


PLUGIN_KEYS = {
    "kind", "name", "full_name", "distribution", "version", "target", "api", "stage", "state", "reason", "warnings",
    "summary", "stability", "capabilities", "requires", "config", "clashes_with",
}  # fmt: skip


class TestList:
    def test_json_is_frozen(self, run: Run) -> None:
        report = json.loads(run("plugins", "list", "--json")[1])
        assert set(report) == {"core", "kinds", "plugins"}
        assert {kind["name"] for kind in report["kinds"]} == set(KINDS)
        for kind in report["kinds"]:
            assert set(kind) == {"name", "group", "api", "stage", "summary", "interface", "capabilities"}
            assert kind["capabilities"]["priority"] == "a whole number"
        for plugin in report["plugins"]:
            assert set(plugin) == PLUGIN_KEYS
            assert set(plugin["requires"]) == {"packages", "hardware"}
        assert {p["stage"] for p in report["plugins"]} <= {"live", "draft"}

    def test_kind(self, run: Run) -> None:
        report = json.loads(run("plugins", "list", "--json", "--kind", "prefix_cache")[1])
        assert {p["kind"] for p in report["plugins"]} == {k["name"] for k in report["kinds"]} == {"prefix_cache"}
        assert {"radix", "none"} <= {p["name"] for p in report["plugins"]}

    def test_table_with_warnings(self, run: Run, use: Any) -> None:
        use(fakes.record("attention", "odd", fakes.attention(), capabilities={"sofcap": True, "priority": 2}))
        code, out, _ = run("plugins", "list")
        assert code == 0
        head = ["KIND", "NAME", "DISTRIBUTION", "VERSION", "API", "STAGE", "STATE", "SUMMARY", "CAPABILITIES"]
        assert out.splitlines()[0].split() == head
        assert "sofcap=true priority=2" in out
        assert "did you mean 'softcap'?" in out


class TestExplain:
    def test_text(self, run: Run, use: Any, folder: str) -> None:
        use(fakes.record("hardware", "absent", fakes.hardware(present=False)))
        code, out, _ = run("plugins", "explain", "--model", folder, "--port", "1")
        assert code == 0
        assert "hardware: host (dummy 1.0)\n    why: highest priority" in out
        assert "    not absent: no such device" in out

    def test_json_is_frozen(self, run: Run, use: Any, folder: str) -> None:
        use(fakes.record("hardware", "absent", fakes.hardware(present=False)))
        report = json.loads(run("plugins", "explain", "--model", folder, "--json")[1])
        assert set(report) == {"ok", "effective", "choices", "warnings", "error", "plugins"}
        assert (report["ok"], report["error"], report["plugins"]) == (True, None, None)
        assert report["effective"]["device"] == "host"
        for row in report["choices"]:
            assert set(row) == {"what", "kind", "chosen", "plugin", "reason", "rejected"}
        hardware = next(row for row in report["choices"] if row["what"] == "hardware")
        assert hardware["rejected"] == [{"name": "absent", "reason": "no such device"}]
        assert hardware["plugin"] == "dummy:host"

    def test_failure_shows_how_far_it_came_and_why_it_stopped(self, run: Run, use: Any, folder: str) -> None:
        use(fakes.record("attention", "plain", fakes.attention(page_sizes=(4,))))
        args = ("plugins", "explain", "--model", folder, "--page-size", "8")
        code, out, err = run(*args)
        assert code == 2
        assert "hardware: host (dummy 1.0)" in out
        assert "stopped at: attention" in out
        assert "page size 8 is not among 4" in err
        code, out, _ = run(*args, "--json")
        report = json.loads(out)
        assert (code, report["ok"], report["effective"]) == (2, False, None)
        assert set(report["error"]) == {"step", "type", "message", "hint"}
        assert (report["error"]["step"], report["error"]["type"]) == ("attention", "ConfigError")
        assert [row["what"] for row in report["choices"]][:3] == ["checkpoint", "hardware", "model"]

    def test_failure_of_the_first_step(self, run: Run, tmp_path: Path) -> None:
        code, _, err = run("plugins", "explain", "--model", str(tmp_path))
        assert code == 2
        assert "no config.json" in err

    @pytest.mark.parametrize(
        ("name", "verdict"),
        [
            ("host", "chosen (hardware): highest priority (0) of what is present; a fake device"),
            ("absent", "not chosen: no such device"),
            ("attention/late", "not chosen: plain (dummy 1.0) was: installed and able"),
            ("dummy:broken", "not chosen: no compiler"),
            ("unused", "not chosen: nothing asks for it"),
            ("hello", "not chosen: it is used when somebody runs `core hello`"),
            ("future", "not chosen: speculative is a draft kind; no engine calls its plugins yet"),
            ("off", "not chosen: disable_plugins names 'off'"),
        ],
    )
    def test_one_plugin(self, run: Run, use: Any, folder: str, name: str, verdict: str) -> None:
        use(
            fakes.record("hardware", "absent", fakes.hardware(present=False)),
            fakes.record("attention", "plain", fakes.attention(), capabilities={"priority": 1}),
            fakes.record("attention", "late", fakes.attention()),
            fakes.record("moe", "off", object()),
            fakes.broken(fakes.record("moe", "broken"), "no compiler"),
            fakes.record("checkpoints", "unused", object()),
            fakes.record("commands", "hello", object()),
            fakes.record("speculative", "future", object()),
        )
        args = ("plugins", "explain", name, "--model", folder, "--disable-plugins", "off")
        code, out, _ = run(*args, "--json")
        (plugin,) = json.loads(out)["plugins"]
        assert set(plugin) == PLUGIN_KEYS | {"verdict"}
        if name == "unused":  # a folder was given
            assert plugin["verdict"][0].startswith("not chosen")
        else:
            assert plugin["verdict"] == [verdict]
            assert f"here: {verdict}" in run(*args)[1]
        assert code == 0

    def test_one_plugin_when_resolution_failed(self, run: Run, use: Any, tmp_path: Path) -> None:
        use()
        code, out, err = run("plugins", "explain", "radix", "--model", str(tmp_path))
        assert code == 2
        assert "not chosen: nothing was decided, since the step 'checkpoint' failed" in out
        assert "no config.json" in err

    def test_unknown_name(self, run: Run, use: Any, folder: str) -> None:
        use()
        code, _, err = run("plugins", "explain", "radxi", "--model", folder)
        assert (code, "did you mean 'radix'?" in err) == (2, True)


class TestConfigShow:
    @pytest.fixture
    def fast(self, use: Any, options_module: None) -> Catalog:
        catalog: Catalog = use(
            fakes.record("attention", "fast", config="plugin_opts:Options"),
            fakes.record("moe", "other", config="nowhere_at_all:Options"),
        )
        return catalog

    def shown(self, run: Run, *args: str) -> dict[str, Any]:
        report = json.loads(run("config", "show", "--json", *args)[1])
        return {name: entry for name, entry in report.items() if name.startswith("plugins.")}

    def test_only_plugins_with_a_section_unless_asked(self, run: Run, fast: Catalog) -> None:
        assert self.shown(run) == {}
        assert "plugin_opts" not in sys.modules
        rows = self.shown(run, "--set", "fast.splits=4")
        assert rows["plugins.fast.splits"] == {
            "value": 4, "source": "flag --set", "type": "int", "default": 2, "plugin": "dummy:fast",
        }  # fmt: skip
        assert rows["plugins.fast.name"]["source"] == "default"
        code, out, err = run("config", "show", "--plugins")
        assert code == 0
        assert "plugins.fast.splits" in out
        assert "settings model nowhere_at_all:Options cannot be imported" in err

    def test_environment_and_folded_names(self, run: Run, fast: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CORE_PLUGINS__FAST__SPLITS", "7")
        row = self.shown(run)["plugins.fast.splits"]
        assert (row["value"], row["source"]) == (7, "environment CORE_PLUGINS__FAST__SPLITS")

    def test_secrets_are_masked_also_where_the_section_is_wrong(self, run: Run, fast: Catalog) -> None:
        for extra in ((), ("--set", "fast.splits=x"), ("--set", "fast.word=[s3cret]"), ("--set", "gone.token=s3cret")):
            for json_too in ((), ("--json",)):
                _, out, err = run("config", "show", "--set", "fast.word=s3cret", *extra, *json_too)
                assert "s3cret" not in out + err
        assert self.shown(run, "--set", "fast.word=s3cret")["plugins.fast.word"]["value"] == "***"
        _, _, err = run("config", "show", "--set", "fast.splits=x")
        assert "plugins.fast.splits is 'x' (flag --set)" in err

    def test_what_belongs_to_nothing_installed_is_shown_too(self, run: Run, fast: Catalog) -> None:
        row = self.shown(run, "--set", "gone.a=1")["plugins.gone.a"]
        assert row == {"value": 1, "source": "flag --set", "type": "", "default": None, "plugin": ""}
