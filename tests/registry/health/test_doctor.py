"""`core plugins doctor`: each thing that can be wrong is found, named and given a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import MakeDist

from core.cli import main as cli
from core.config.loading import load_settings
from core.registry import Catalog
from core.registry.health.doctor import examine
from core.registry.health.findings import Finding, healthy

RUNNER = "from core.interfaces.moe import MoeRunner\nclass R(MoeRunner):\n    def run(self, *a):\n        return a\n"
PROBING = """
from core.interfaces.hardware import HardwareBackend, HardwareCapabilities, ProbeResult
class Device(HardwareBackend):
    capabilities = HardwareCapabilities()
    @classmethod
    def probe(cls):
        {probe}
    def initialize(self, local_rank): ...
    def memory(self): ...
    def kv_budget_bytes(self, fraction, requested_bytes): ...
"""


def manifest(*entries: str) -> str:
    return "schema = 1\n" + "".join(f"[[plugin]]\n{entry}\n" for entry in entries)


def entry(name: str, kind: str = "moe", api: str = "[1, 1]", rest: str = "") -> str:
    return f'kind = "{kind}"\nname = "{name}"\napi = {api}\n{rest}'


def moe(*names: str, module: str) -> dict[str, dict[str, str]]:
    return {"core.moe": dict.fromkeys(names, f"{module}:R")}


@pytest.fixture
def device(make_dist: MakeDist) -> None:
    """One that works, so that its absence is no finding."""
    code = PROBING.format(probe='return ProbeResult(True, description="here")')
    make_dist("plugin-dev", {"core.hardware": {"dev": "plugin_dev:Device"}}, manifest(entry("dev", "hardware")), code)


def findings(site: Path, monkeypatch: pytest.MonkeyPatch, *set_values: str, **flags: Any) -> list[Finding]:
    real = Catalog.scan
    monkeypatch.setattr("core.registry.health.children.sys.path", [str(site), *__import__("sys").path])
    settings = load_settings(flags, plugin_flags=set_values).settings
    found = examine(settings, real(paths=[str(site)]), timeout_s=30)
    for finding in found:
        assert finding.why
        assert finding.fix or finding.severity == "info", finding
    return found


def only(found: list[Finding], check: str) -> Finding:
    (finding,) = [f for f in found if f.check == check]
    return finding


@pytest.mark.usefixtures("device")
class TestFindings:
    def test_nothing_is_wrong(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = findings(site, monkeypatch)
        assert healthy(found)
        assert [(f.severity, f.what, f.why) for f in found] == [("info", "present", "here")]

    def test_metadata(self, make_dist: MakeDist, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        text = manifest(
            entry("old", api="[0, 0]").replace("[0, 0]", "[7, 8]"),
            entry("needs", rest='[plugin.requires]\npackages = ["surely-not-installed>=2"]'),
            entry("wrong", rest="[plugin.capabilities]\npriority = 'high'"),
            entry("odd", rest="[plugin.capabilities]\nformat = 1"),
            entry("next", "speculative"),
        )
        points = moe("old", "needs", "wrong", "odd", module="plugin_a")
        points["core.speculative"] = {"next": "plugin_a:Nothing"}
        make_dist("plugin-a", points, text, RUNNER)
        found = findings(site, monkeypatch)
        api = only(found, "api")
        assert ("needs a newer core" in api.why, "upgrade core" in api.fix) == (True, True)
        needs = only(found, "requirement")
        assert (needs.plugin, needs.fix) == ("moe plugin-a:needs", "pip install 'surely-not-installed>=2'")
        wrong, odd = [f for f in found if f.check == "manifest"]
        assert (wrong.severity, "priority is 'high'" in wrong.why) == ("error", True)
        assert (odd.severity, "did you mean 'formats'?" in odd.why) == ("warning", True)
        assert only(found, "draft").severity == "info"

    def test_bad_manifest_and_entry_points_that_do_not_agree(
        self, make_dist: MakeDist, site: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_dist("plugin-a", moe("x", module="plugin_a"), "schema = ", RUNNER)
        make_dist("plugin-b", moe("y", module="plugin_b"), manifest(entry("z")), RUNNER)
        reasons = sorted(f.why for f in findings(site, monkeypatch) if f.check == "manifest")
        assert "not valid TOML" in reasons[0]
        assert "core_plugin.toml has no entry for moe 'y'" in reasons[2]
        assert "no entry point core.moe:z" in reasons[1]

    def test_clash_until_one_is_turned_off(
        self, make_dist: MakeDist, site: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for letter in "ab":
            make_dist(f"plugin-{letter}", moe("x", module=f"plugin_{letter}"), manifest(entry("x")), RUNNER)
        clashes = [f for f in findings(site, monkeypatch) if f.check == "clash"]
        assert [f.plugin for f in clashes] == ["moe plugin-a:x", "moe plugin-b:x"]
        assert "plugin-b 1.0" in clashes[0].why
        off = findings(site, monkeypatch, disable_plugins="plugin-b")
        assert healthy(off)
        assert only(off, "disabled").plugin == "moe plugin-b:x"

    def test_imports(self, make_dist: MakeDist, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_dist("plugin-a", moe("x", module="plugin_a"), manifest(entry("x")), "raise RuntimeError('no driver')")
        make_dist("plugin-b", moe("y", module="plugin_b"), manifest(entry("y")), "import os; os._exit(3)")
        symbol = "raise ImportError('_C.so: undefined symbol: abc')"
        make_dist("plugin-c", moe("z", module="plugin_c"), manifest(entry("z")), symbol)
        found = findings(site, monkeypatch)
        raised, left = [f for f in found if f.check == "import"]
        assert "RuntimeError: no driver" in raised.why
        assert "--disable-plugins plugin-b:y" in left.fix
        binary = only(found, "binary")
        assert "the loader says: _C.so: undefined symbol: abc (installed torch: " in binary.why
        assert "--no-deps plugin-c==1.0" in binary.fix

    def test_wrong_torch_and_other_dependencies(
        self, make_dist: MakeDist, site: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_dist("plugin-a", moe("x", module="plugin_a"), manifest(entry("x")), RUNNER)
        metadata = site / "plugin_a-1.0.dist-info" / "METADATA"
        requires = ("torch>=99", "torch-like>=1", "surely-not-installed; extra == 'all'", "msgspec>=0.1")
        metadata.write_text(metadata.read_text() + "".join(f"Requires-Dist: {text}\n" for text in requires))
        found = findings(site, monkeypatch)
        torch = only(found, "torch")
        assert (torch.plugin, torch.what) == ("plugin-a", "wrong torch")
        assert "it needs torch>=99, but" in torch.why
        assert torch.fix.startswith("pip install 'torch>=99', or another version of plugin-a")
        assert "torch-like" in only(found, "requirement").why

    def test_settings(self, make_dist: MakeDist, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options = RUNNER + "from pydantic import BaseModel\nclass Options(BaseModel):\n    splits: int = 1\n"
        configured = manifest(entry("x", rest='config = "plugin_a:Options"'), entry("y", rest='config = "plugin_a:No"'))
        make_dist("plugin-a", moe("x", "y", module="plugin_a"), configured, options)
        values = ("gone.a=1", "x.split=2", "dev.speed=3")
        found = [f for f in findings(site, monkeypatch, *values) if f.check == "settings"]
        unreadable, dev, gone, x = sorted(found, key=lambda f: (-len(f.plugin), f.what))
        assert unreadable.plugin == "moe plugin-a:y"
        assert "cannot be imported" in unreadable.why
        assert (dev.severity, "names no model" in dev.why) == ("warning", True)
        assert "no installed plugin is called 'gone'" in gone.why
        assert "did you mean 'splits'?" in x.fix

    def test_deprecated_method(self, make_dist: MakeDist, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        marked = RUNNER + (
            "from core.interfaces.deprecation import superseded\n"
            "superseded(by='compute', since=2, removed_in=3)(MoeRunner.run)\n"
            "MoeRunner.compute = lambda self: None\n"
        )
        make_dist("plugin-a", moe("x", module="plugin_a"), manifest(entry("x")), marked)
        old = only(findings(site, monkeypatch), "deprecated")
        assert old.severity == "warning"
        assert "it implements run, which compute replaces since version 2" in old.why


@pytest.mark.parametrize(
    ("probe", "severity", "text"),
    [
        ('return ProbeResult(False, reason="no bus")', "info", "no bus"),
        ('raise OSError("driver is confused")', "error", "OSError: driver is confused"),
    ],
)
def test_probes_and_no_device(
    make_dist: MakeDist, site: Path, monkeypatch: pytest.MonkeyPatch, probe: str, severity: str, text: str
) -> None:
    points = {"core.hardware": {"chip": "plugin_chip:Device"}}
    make_dist("plugin-chip", points, manifest(entry("chip", "hardware")), PROBING.format(probe=probe))
    found = [f for f in findings(site, monkeypatch) if f.check == "probe"]
    assert any((f.severity, f.why) == (severity, text) for f in found)
    assert any(f.what == "no device" and f.severity == "error" for f in found)


def test_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Finding("error", "import", "moe d:x", "import failed", "it raised", "reinstall d")]
    monkeypatch.setattr("core.registry.health.doctor.examine", lambda *a, **k: found)
    assert cli.main(["plugins", "doctor"]) == 1
    assert "error: moe d:x: import failed\n    it raised\n    way out: reinstall d\n" in capsys.readouterr().out
    assert cli.main(["plugins", "doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"core", "python", "torch", "healthy", "checked", "findings"}
    assert report["findings"] == [
        {"severity": "error", "check": "import", "plugin": "moe d:x", "what": "import failed", "why": "it raised",
         "fix": "reinstall d"}
    ]  # fmt: skip
    found[:] = [Finding("warning", "manifest", "moe d:x", "odd", "why", "fix")]
    assert cli.main(["plugins", "doctor"]) == 0
    assert "no problems" in capsys.readouterr().out
